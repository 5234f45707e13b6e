// What the per-instruction-set kernels (kernels.cpp) and their driver (scene.cpp) agree on: plain structs only.
//
// Knows nothing of threads, memory management or Python. All lengths are counts of elements, all memory is the
// caller's. Frames: world -> camera (OpenCV: x right, y down, z forward) -> pixels, pixel (i, j) has its centre at
// (j + 0.5, i + 0.5).
#pragma once

#include <stdint.h>

namespace raster {

constexpr int TILE = 16;          // tiles are 16 x 16 pixels
constexpr int BLOCK = 4;          // and hold 16 blocks of 4 x 4 pixels: one 16-lane vector each
constexpr int SLOT_FLOATS = 12;   // gradient slot of one (tile, splat) pair, see Slot

struct Camera {
    float rotation[9];    // world to camera, row major
    float translation[3];
    float fx, fy, cx, cy;
    float x_low, x_high, y_low, y_high;  // x/z and y/z are clamped to these in the projection's Jacobian
    int width, height;
};

// The parameters of the N Gaussians of one scene, each array contiguous.
struct Gaussians {
    const float* means;      // [N, 3]
    const float* quats;      // [N, 4] wxyz
    const float* scales;     // [N, 3]
    const float* opacities;  // [N]
    const float* colors;     // [N, 3]
};

// A Gaussian on the image. With d = pixel - (x, y):
// log2(alpha) = k - (a dx^2 + b dx dy + c dy^2), the opacity folded into k.
struct Splat {
    float x, y;
    float a, b, c, k;
    float color[3];
    float slope_y, slope_x;  // the quadric's least dy along a line of fixed dx is slope_y * dx; slope_x likewise
    float unused;
};

// Range of tiles [x0, x1) x [y0, y1) that a splat may touch; empty where it is invisible.
struct TileRect {
    uint16_t x0, y0, x1, y1;
};

struct Pair {
    uint32_t splat;
    uint32_t slot;  // where this (tile, splat) pair leaves its gradient
};

struct ProjectArgs {
    Camera camera;
    Gaussians in;
    Splat* splats;        // [N]
    TileRect* rects;      // [N]
    uint32_t* depths;     // [N] bits of z: ordered like z, for z > 0
};

struct BlendArgs {
    int width, height, tiles_x;
    const Splat* splats;
    const Pair* pairs;             // sorted by tile, then depth
    const uint32_t* tile_offsets;  // [tiles + 1]
    uint16_t* block_masks;         // [pairs] bit b: block b of the tile may be touched
    uint32_t* tile_used;           // [tiles] leading pairs of the tile that were looked at before all pixels stopped
    float* rgb;                    // [H, W, 3]
    float* alpha;                  // [H, W]
    const float* background;       // [H, W, 3], read where bytes is given
    uint8_t* bytes;                // [H, W, 3] the picture over the background; null to write rgb and alpha instead
};

// Sums over the pixels of a tile, with u = alpha * dL/dalpha (0 where alpha is clamped) and d = pixel - mean.
enum Slot { U, UX, UY, UXX, UXY, UYY, RED, GREEN, BLUE, ABS_X, ABS_Y };

struct BlendBackwardArgs {
    BlendArgs forward;        // rgb and alpha hold the forward result
    const float* grad_rgb;    // [H, W, 3] or null
    const float* grad_alpha;  // [H, W] or null
    float* slots;             // [pairs, SLOT_FLOATS]
    bool absolute;            // also fill ABS_X and ABS_Y
};

// Gradients of one scene, shaped like Gaussians. Null where not wanted. An input shared by several scenes is added to.
struct Gradients {
    float *means, *quats, *scales, *opacities, *colors;
    bool add_means, add_quats, add_scales, add_opacities, add_colors;
    float* absgrad;  // [N], always added to
};

struct ProjectBackwardArgs {
    Camera camera;
    Gaussians in;
    const uint32_t* slot_offsets;  // [N + 1] slots of each splat
    const float* slots;
    Gradients out;
};

struct Kernels {
    const char* name;
    // Splats [begin, end). False if an input is not finite.
    bool (*project)(const ProjectArgs&, int begin, int end);
    void (*blend)(const BlendArgs&, int tile);
    void (*blend_backward)(const BlendBackwardArgs&, int tile);
    void (*project_backward)(const ProjectBackwardArgs&, int begin, int end);
};

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace raster
