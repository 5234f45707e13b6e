// The four inner loops: project, blend, and the backward pass of each. Compiled once per instruction set, with
// KERNELS naming the table it defines.
//
// Knows nothing of threads or memory management: each function works on a range of splats or on one tile, and writes
// only what that range or tile owns, so any division among threads gives the same bits. No std:: here (see simd.h).
//
// The mathematics is that of "EWA splatting" (Zwicker et al. 2001) and "3D Gaussian Splatting" (Kerbl et al. 2023),
// with gsplat 1.5's conventions: 0.3 px^2 added to the 2-D covariance, alpha at most 0.999, alpha below 1/255
// skipped, a pixel stops before its transmittance falls to 1e-4.
#include "kernels.h"
#include "simd.h"

namespace raster {
namespace {

constexpr float NEAR_PLANE = 0.01f;
constexpr float COVARIANCE_BLUR = 0.3f;
constexpr float ALPHA_MAX = 0.999f;
constexpr float ALPHA_MIN = 1.0f / 255.0f;
constexpr float LOG2_ALPHA_MIN = -7.994353437f;
constexpr float TRANSMITTANCE_MIN = 1e-4f;
constexpr float LN2 = 0.69314718f, LOG2E = 1.44269504f;

// ---------------------------------------------------------------------------------------------------- projection

// `rows` rows of `columns` floats -> columns vectors. Lanes past the last row repeat it.
template <int columns>
INLINE void load_rows(const float* p, int rows, F* out) {
    float lanes[columns][W];
    for (int i = 0; i < W; ++i) {
        const float* row = p + (i < rows ? i : rows - 1) * columns;
        for (int j = 0; j < columns; ++j) lanes[j][i] = row[j];
    }
    for (int j = 0; j < columns; ++j) out[j] = load(lanes[j]);
}

template <int columns>
INLINE void store_rows(float* p, int rows, bool add, const F* values) {
    float lanes[columns][W];
    for (int j = 0; j < columns; ++j) store(lanes[j], values[j]);
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < columns; ++j) p[i * columns + j] = lanes[j][i] + (add ? p[i * columns + j] : 0.0f);
}

// Everything between a Gaussian's parameters and its 2-D covariance.
struct Projection {
    F p[3];              // mean in the camera frame
    F inv_z;
    F tx, ty;            // p.x / p.z and p.y / p.z, clamped as in the Jacobian
    Mask free_x, free_y; // where that clamp does nothing
    F q[4], inv_norm;    // unit quaternion, 1 / length of the given one
    F s[3];
    F r[9];              // rotation of the quaternion
    F w[6];              // J * camera rotation, 2 x 3
    F u[6];              // w * r
    F v[6];              // u * diag(s); the covariance is v v^T
    F xx, xy, yy;        // 2-D covariance with the blur
    F inv_det;
};

INLINE void project_lanes(const Camera& camera, const F* mean, const F* quat, const F* scale, Projection& o) {
    const float* R = camera.rotation;
    for (int i = 0; i < 3; ++i) {
        F t = splat(camera.translation[i]);
        for (int j = 0; j < 3; ++j) t = fma(splat(R[3 * i + j]), mean[j], t);
        o.p[i] = t;
    }
    o.inv_z = 1.0f / o.p[2];
    const F x = o.p[0] * o.inv_z, y = o.p[1] * o.inv_z;
    o.tx = min(max(x, splat(camera.x_low)), splat(camera.x_high));
    o.ty = min(max(y, splat(camera.y_low)), splat(camera.y_high));
    o.free_x = both(at_least(x, splat(camera.x_low)), at_least(splat(camera.x_high), x));
    o.free_y = both(at_least(y, splat(camera.y_low)), at_least(splat(camera.y_high), y));

    o.inv_norm = 1.0f / sqrt(fma(quat[0], quat[0], fma(quat[1], quat[1], fma(quat[2], quat[2], quat[3] * quat[3]))));
    for (int i = 0; i < 4; ++i) o.q[i] = quat[i] * o.inv_norm;
    const F a = o.q[0], b = o.q[1], c = o.q[2], d = o.q[3];
    o.r[0] = 1.0f - 2.0f * fma(c, c, d * d);
    o.r[1] = 2.0f * fnma(a, d, b * c);
    o.r[2] = 2.0f * fma(a, c, b * d);
    o.r[3] = 2.0f * fma(a, d, b * c);
    o.r[4] = 1.0f - 2.0f * fma(b, b, d * d);
    o.r[5] = 2.0f * fnma(a, b, c * d);
    o.r[6] = 2.0f * fnma(a, c, b * d);
    o.r[7] = 2.0f * fma(a, b, c * d);
    o.r[8] = 1.0f - 2.0f * fma(b, b, c * c);

    const F fx_z = camera.fx * o.inv_z, fy_z = camera.fy * o.inv_z;
    const F jx = fx_z * o.tx, jy = fy_z * o.ty;  // the Jacobian is [[fx_z, 0, -jx], [0, fy_z, -jy]]
    for (int j = 0; j < 3; ++j) {
        o.w[j] = fnma(jx, splat(R[6 + j]), fx_z * R[j]);
        o.w[3 + j] = fnma(jy, splat(R[6 + j]), fy_z * R[3 + j]);
        o.s[j] = scale[j];
    }
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 3; ++j) {
            o.u[3 * i + j] =
                fma(o.w[3 * i], o.r[j], fma(o.w[3 * i + 1], o.r[3 + j], o.w[3 * i + 2] * o.r[6 + j]));
            o.v[3 * i + j] = o.u[3 * i + j] * o.s[j];
        }
    const F blur = splat(COVARIANCE_BLUR);
    o.xx = fma(o.v[0], o.v[0], fma(o.v[1], o.v[1], fma(o.v[2], o.v[2], blur)));
    o.xy = fma(o.v[0], o.v[3], fma(o.v[1], o.v[4], o.v[2] * o.v[5]));
    o.yy = fma(o.v[3], o.v[3], fma(o.v[4], o.v[4], fma(o.v[5], o.v[5], blur)));
    o.inv_det = 1.0f / fnma(o.xy, o.xy, o.xx * o.yy);
}

// First and one-past-last tile that holds a pixel centre in [low, high], both already relative to centre 0.
INLINE void tile_range(float low, float high, int tiles, uint16_t& first, uint16_t& end) {
    const float limit = (float)(tiles * TILE);
    low = low < 0.0f ? 0.0f : (low > limit ? limit : low);
    int pixel = (int)low;
    pixel += (float)pixel < low;
    first = (uint16_t)(pixel / TILE);
    high = high > limit - 1.0f ? limit - 1.0f : high;
    end = (uint16_t)(high < 0.0f ? 0 : (int)high / TILE + 1);
}

bool project(const ProjectArgs& args, int begin, int end) {
    const Camera& camera = args.camera;
    const int tiles_x = (camera.width + TILE - 1) / TILE, tiles_y = (camera.height + TILE - 1) / TILE;
    F not_finite = F{};
    for (int i = begin; i < end; i += W) {
        const int rows = end - i < W ? end - i : W;
        F mean[3], quat[4], scale[3], opacity[1], color[3];
        load_rows<3>(args.in.means + 3 * (int64_t)i, rows, mean);
        load_rows<4>(args.in.quats + 4 * (int64_t)i, rows, quat);
        load_rows<3>(args.in.scales + 3 * (int64_t)i, rows, scale);
        load_rows<1>(args.in.opacities + i, rows, opacity);
        load_rows<3>(args.in.colors + 3 * (int64_t)i, rows, color);
        // 0 * x is 0 for a finite x and NaN for any other.
        for (int j = 0; j < 3; ++j) not_finite += 0.0f * mean[j] + 0.0f * scale[j] + 0.0f * color[j];
        for (int j = 0; j < 4; ++j) not_finite += 0.0f * quat[j];
        not_finite += 0.0f * opacity[0];

        Projection o;
        project_lanes(camera, mean, quat, scale, o);
        const F x = fma(splat(camera.fx), o.p[0] * o.inv_z, splat(camera.cx));
        const F y = fma(splat(camera.fy), o.p[1] * o.inv_z, splat(camera.cy));
        const F k = log2(opacity[0]);
        // alpha = 1/255 on the ellipse d^T cov^-1 d = reach2, whose extent is sqrt(reach2 * cov.xx) (likewise y).
        const F reach2 = max(2.0f * LN2 * (k - LOG2_ALPHA_MIN), F{});
        const F extent_x = sqrt(reach2 * o.xx) + 1e-4f, extent_y = sqrt(reach2 * o.yy) + 1e-4f;
        // A singular or overflowing covariance and a quaternion of length 0 fail these tests (NaN compares false).
        const Mask invertible = both(greater(o.inv_det, F{}), greater(splat(3e38f), o.inv_det));
        const Mask in_front = both(at_least(o.p[2], splat(NEAR_PLANE)), at_least(opacity[0], splat(ALPHA_MIN)));

        const F a = 0.5f * LOG2E * (o.yy * o.inv_det);
        const F b = -LOG2E * (o.xy * o.inv_det);
        const F c = 0.5f * LOG2E * (o.xx * o.inv_det);
        float columns[11][W], low_x[W], high_x[W], low_y[W], high_y[W], z[W];
        store(columns[0], x);
        store(columns[1], y);
        store(columns[2], a);
        store(columns[3], b);
        store(columns[4], c);
        store(columns[5], k);
        for (int j = 0; j < 3; ++j) store(columns[6 + j], color[j]);
        store(columns[9], -0.5f * b / c);
        store(columns[10], -0.5f * b / a);
        store(low_x, x - extent_x - 0.5f);
        store(high_x, x + extent_x - 0.5f);
        store(low_y, y - extent_y - 0.5f);
        store(high_y, y + extent_y - 0.5f);
        store(z, o.p[2]);
        const uint32_t seen = bits(both(invertible, in_front));
        for (int lane = 0; lane < rows; ++lane) {
            TileRect rect = {0, 0, 0, 0};
            if (seen >> lane & 1) {
                tile_range(low_x[lane], high_x[lane], tiles_x, rect.x0, rect.x1);
                tile_range(low_y[lane], high_y[lane], tiles_y, rect.y0, rect.y1);
                if (rect.x1 <= rect.x0 || rect.y1 <= rect.y0) rect = {0, 0, 0, 0};
            }
            args.rects[i + lane] = rect;
            __builtin_memcpy(&args.depths[i + lane], &z[lane], 4);
            float* record = (float*)&args.splats[i + lane];
            for (int j = 0; j < 11; ++j) record[j] = columns[j][lane];
        }
    }
    return bits(at_least(not_finite, F{})) == (1u << W) - 1;
}

void project_backward(const ProjectBackwardArgs& args, int begin, int end) {
    const Camera& camera = args.camera;
    const float* R = camera.rotation;
    const Gradients& out = args.out;
    for (int i = begin; i < end; i += W) {
        const int rows = end - i < W ? end - i : W;
        float sums[11][W] = {};
        float seen[W] = {};
        for (int lane = 0; lane < rows; ++lane) {
            const uint32_t first = args.slot_offsets[i + lane], last = args.slot_offsets[i + lane + 1];
            seen[lane] = last > first;
            for (uint32_t slot = first; slot < last; ++slot)
                for (int j = 0; j < 11; ++j) sums[j][lane] += args.slots[(int64_t)slot * SLOT_FLOATS + j];
        }
        const Mask visible = greater(load(seen), F{});
        F mean[3], quat[4], scale[3], opacity[1];
        load_rows<3>(args.in.means + 3 * (int64_t)i, rows, mean);
        load_rows<4>(args.in.quats + 4 * (int64_t)i, rows, quat);
        load_rows<3>(args.in.scales + 3 * (int64_t)i, rows, scale);
        load_rows<1>(args.in.opacities + i, rows, opacity);
        Projection o;
        project_lanes(camera, mean, quat, scale, o);

        const F inv_xx = o.yy * o.inv_det, inv_xy = -o.xy * o.inv_det, inv_yy = o.xx * o.inv_det;
        // sigma = d^T inv d / 2, alpha = opacity exp(-sigma), u = alpha dL/dalpha = -dL/dsigma.
        const F mean_x = fma(inv_xx, load(sums[UX]), inv_xy * load(sums[UY]));
        const F mean_y = fma(inv_xy, load(sums[UX]), inv_yy * load(sums[UY]));
        // dL/dcov = -inv (dL/dinv) inv with dL/dinv = -[[uxx, uxy], [uxy, uyy]] / 2.
        const F uxx = load(sums[UXX]), uxy = load(sums[UXY]), uyy = load(sums[UYY]);
        const F left_xx = fma(inv_xx, uxx, inv_xy * uxy), left_xy = fma(inv_xx, uxy, inv_xy * uyy);
        const F left_yx = fma(inv_xy, uxx, inv_yy * uxy), left_yy = fma(inv_xy, uxy, inv_yy * uyy);
        const F cov_xx = 0.5f * fma(left_xx, inv_xx, left_xy * inv_xy);
        const F cov_xy = 0.5f * fma(left_xx, inv_xy, left_xy * inv_yy);
        const F cov_yy = 0.5f * fma(left_yx, inv_xy, left_yy * inv_yy);

        // cov = v v^T, v = u diag(s), u = w r.
        F grad_u[6], grad_scale[3], grad_r[9], grad_w[6];
        for (int j = 0; j < 3; ++j) {
            const F v0 = 2.0f * fma(cov_xx, o.v[j], cov_xy * o.v[3 + j]);
            const F v1 = 2.0f * fma(cov_xy, o.v[j], cov_yy * o.v[3 + j]);
            grad_scale[j] = keep(visible, fma(v0, o.u[j], v1 * o.u[3 + j]));
            grad_u[j] = v0 * o.s[j];
            grad_u[3 + j] = v1 * o.s[j];
        }
        for (int m = 0; m < 3; ++m)
            for (int j = 0; j < 3; ++j)
                grad_r[3 * m + j] = fma(o.w[m], grad_u[j], o.w[3 + m] * grad_u[3 + j]);
        for (int m = 0; m < 2; ++m)
            for (int j = 0; j < 3; ++j)
                grad_w[3 * m + j] = fma(grad_u[3 * m], o.r[3 * j],
                                        fma(grad_u[3 * m + 1], o.r[3 * j + 1], grad_u[3 * m + 2] * o.r[3 * j + 2]));

        // w = J R, J = [[fx/z, 0, -fx tx/z], [0, fy/z, -fy ty/z]]; tx = x/z moves only inside the clamp.
        F jacobian[4] = {F{}, F{}, F{}, F{}};  // 00, 02, 11, 12
        for (int j = 0; j < 3; ++j) {
            jacobian[0] = fma(grad_w[j], splat(R[j]), jacobian[0]);
            jacobian[1] = fma(grad_w[j], splat(R[6 + j]), jacobian[1]);
            jacobian[2] = fma(grad_w[3 + j], splat(R[3 + j]), jacobian[2]);
            jacobian[3] = fma(grad_w[3 + j], splat(R[6 + j]), jacobian[3]);
        }
        const F fx_z = camera.fx * o.inv_z, fy_z = camera.fy * o.inv_z;
        const F tx_grad = keep(o.free_x, -fx_z * jacobian[1]) + 0.0f;
        const F ty_grad = keep(o.free_y, -fy_z * jacobian[3]) + 0.0f;
        const F x_grad = fma(fx_z, mean_x, tx_grad * o.inv_z);
        const F y_grad = fma(fy_z, mean_y, ty_grad * o.inv_z);
        const F x_z = o.p[0] * o.inv_z, y_z = o.p[1] * o.inv_z;
        F z_grad = fx_z * fnma(splat(1.0f), jacobian[0], o.tx * jacobian[1]);
        z_grad += fy_z * fnma(splat(1.0f), jacobian[2], o.ty * jacobian[3]);
        z_grad -= fma(tx_grad, x_z, ty_grad * y_z);
        z_grad *= o.inv_z;
        z_grad -= fma(fx_z * mean_x, x_z, fy_z * mean_y * y_z);
        F grad_mean[3];
        for (int j = 0; j < 3; ++j)
            grad_mean[j] = keep(visible, fma(x_grad, splat(R[j]), fma(y_grad, splat(R[3 + j]), z_grad * R[6 + j])));

        // Rotation matrix -> unit quaternion -> quaternion as given.
        const F qa = o.q[0], qb = o.q[1], qc = o.q[2], qd = o.q[3];
        const F* g = grad_r;
        F unit[4];
        unit[0] = fma(qb, g[7] - g[5], fma(qc, g[2] - g[6], qd * (g[3] - g[1])));
        unit[1] = fma(qc, g[1] + g[3], fma(qd, g[2] + g[6], fma(qa, g[7] - g[5], -2.0f * qb * (g[4] + g[8]))));
        unit[2] = fma(qb, g[1] + g[3], fma(qd, g[5] + g[7], fma(qa, g[2] - g[6], -2.0f * qc * (g[0] + g[8]))));
        unit[3] = fma(qb, g[2] + g[6], fma(qc, g[5] + g[7], fma(qa, g[3] - g[1], -2.0f * qd * (g[0] + g[4]))));
        const F radial = fma(unit[0], qa, fma(unit[1], qb, fma(unit[2], qc, unit[3] * qd)));
        F grad_quat[4];
        for (int j = 0; j < 4; ++j)
            grad_quat[j] = keep(visible, 2.0f * o.inv_norm * fnma(radial, o.q[j], unit[j]));

        if (out.means) store_rows<3>(out.means + 3 * (int64_t)i, rows, out.add_means, grad_mean);
        if (out.quats) store_rows<4>(out.quats + 4 * (int64_t)i, rows, out.add_quats, grad_quat);
        if (out.scales) store_rows<3>(out.scales + 3 * (int64_t)i, rows, out.add_scales, grad_scale);
        if (out.opacities) {
            const F grad_opacity = keep(visible, load(sums[U]) / opacity[0]);
            store_rows<1>(out.opacities + i, rows, out.add_opacities, &grad_opacity);
        }
        if (out.colors) {
            const F grad_color[3] = {load(sums[RED]), load(sums[GREEN]), load(sums[BLUE])};
            store_rows<3>(out.colors + 3 * (int64_t)i, rows, out.add_colors, grad_color);
        }
        if (out.absgrad) {
            const F ax = load(sums[ABS_X]), ay = load(sums[ABS_Y]);
            const F norm = keep(visible, sqrt(fma(ax, ax, ay * ay)));
            store_rows<1>(out.absgrad + i, rows, true, &norm);
        }
    }
}

// ------------------------------------------------------------------------------------------------------ blending

constexpr int LANES = BLOCK * BLOCK;   // pixels of a block
constexpr int G = LANES / W;           // vectors of a block
constexpr int BLOCKS = (TILE / BLOCK) * (TILE / BLOCK);
constexpr int CHUNK = 128;             // splats looked at together; their indices fit a byte

// For each 8-bit mask: the positions of its set bits, a byte each, and how many there are.
struct SetBits {
    uint64_t positions[256];
    uint8_t count[256];
    constexpr SetBits() : positions(), count() {
        for (int mask = 0; mask < 256; ++mask) {
            int n = 0;
            for (int bit = 0; bit < 8; ++bit)
                if (mask >> bit & 1) positions[mask] |= (uint64_t)bit << (8 * n++);
            count[mask] = (uint8_t)n;
        }
    }
};
constexpr SetBits SET_BITS;

constexpr int PREFETCH = 8;            // splats lie in memory as given, so each is a cache miss: ask for it early

// The next splats of a tile, transposed so that lanes are splats.
struct alignas(64) Chunk {
    float x[CHUNK], y[CHUNK], a[CHUNK], b[CHUNK], c[CHUNK], k[CHUNK];
    float red[CHUNK], green[CHUNK], blue[CHUNK];
    float slope_y[CHUNK], slope_x[CHUNK];
    int32_t masks[CHUNK];                 // blocks that each splat may touch
    uint8_t lists[BLOCKS][CHUNK + 8];     // splats that may touch each block, in order
    uint8_t lengths[BLOCKS];
};

INLINE void fill_chunk(Chunk& chunk, const Splat* splats, const Pair* pairs, int count) {
    for (int i = 0; i < count; ++i) {
        __builtin_prefetch(&splats[pairs[i + PREFETCH < count ? i + PREFETCH : i].splat]);
        const Splat& s = splats[pairs[i].splat];
        chunk.x[i] = s.x;
        chunk.y[i] = s.y;
        chunk.a[i] = s.a;
        chunk.b[i] = s.b;
        chunk.c[i] = s.c;
        chunk.k[i] = s.k;
        chunk.red[i] = s.color[0];
        chunk.green[i] = s.color[1];
        chunk.blue[i] = s.color[2];
        chunk.slope_y[i] = s.slope_y;
        chunk.slope_x[i] = s.slope_x;
    }
    for (int i = count; i % W; ++i) {
        chunk.x[i] = chunk.y[i] = chunk.a[i] = chunk.b[i] = chunk.c[i] = chunk.slope_y[i] = chunk.slope_x[i] = 0.0f;
        chunk.k[i] = -1e30f;
    }
}

// Which splats reach which blocks: the least value of the quadric over the rectangle of a block's pixel centres
// against the level where alpha is 1/255. The minimum of a convex function over a rectangle that does not hold its
// centre lies on a side facing the centre, so it is the lesser of the minima along the nearest vertical and the
// nearest horizontal line.
INLINE void list_blocks(Chunk& chunk, int count, float tile_x, float tile_y) {
    constexpr int PER_SIDE = TILE / BLOCK;
    uint32_t lengths[BLOCKS] = {};
    for (int first = 0; first < count; first += W) {
        const F x = load(chunk.x + first), y = load(chunk.y + first);
        const F a = load(chunk.a + first), b = load(chunk.b + first), c = load(chunk.c + first);
        const F slope_y = load(chunk.slope_y + first), slope_x = load(chunk.slope_x + first);
        // The slack keeps rounding here from deciding what the test of each pixel should.
        const F level = load(chunk.k + first) + (1e-3f - LOG2_ALPHA_MIN);
        F low_x[PER_SIDE], high_x[PER_SIDE], x_part[PER_SIDE], x_mixed[PER_SIDE], y_best[PER_SIDE];
        for (int j = 0; j < PER_SIDE; ++j) {
            low_x[j] = (tile_x + (float)(BLOCK * j) + 0.5f) - x;
            high_x[j] = low_x[j] + (float)(BLOCK - 1);
            const F dx = min(max(low_x[j], F{}), high_x[j]);
            x_mixed[j] = b * dx;
            x_part[j] = a * dx * dx;
            y_best[j] = slope_y * dx;
        }
        I masks = I{};
        for (int i = 0; i < PER_SIDE; ++i) {
            const F low_y = (tile_y + (float)(BLOCK * i) + 0.5f) - y;
            const F high_y = low_y + (float)(BLOCK - 1);
            const F near_y = min(max(low_y, F{}), high_y);
            const F y_mixed = b * near_y, y_part = c * near_y * near_y, x_best = slope_x * near_y;
            for (int j = 0; j < PER_SIDE; ++j) {
                const F dy = min(max(y_best[j], low_y), high_y);
                const F vertical = fma(dy, fma(c, dy, x_mixed[j]), x_part[j]);
                const F dx = min(max(x_best, low_x[j]), high_x[j]);
                const F horizontal = fma(dx, fma(a, dx, y_mixed), y_part);
                const Mask reached = at_least(level, min(vertical, horizontal));
                const int block = PER_SIDE * i + j;
                masks |= keep(reached, splat(int32_t(1 << block)));
                uint32_t lanes = bits(reached);
                for (int part = 0; part < W; part += 8, lanes >>= 8) {
                    const uint64_t entries =
                        SET_BITS.positions[lanes & 255] + (uint64_t)(first + part) * 0x0101010101010101u;
                    __builtin_memcpy(chunk.lists[block] + lengths[block], &entries, 8);
                    lengths[block] += SET_BITS.count[lanes & 255];
                }
            }
        }
        store(chunk.masks + first, masks);
    }
    for (int block = 0; block < BLOCKS; ++block) chunk.lengths[block] = (uint8_t)lengths[block];
}

// Centres of the pixels of a block, and 1 where the pixel is inside the image.
INLINE void block_pixels(int x0, int y0, int g, F& x, F& y) {
    float px[W], py[W];
    for (int i = 0; i < W; ++i) {
        const int pixel = g * W + i;
        px[i] = (float)(x0 + pixel % BLOCK) + 0.5f;
        py[i] = (float)(y0 + pixel / BLOCK) + 0.5f;
    }
    x = load(px);
    y = load(py);
}

// A row of a block: four pixels, as three vectors in memory order or one for each colour.
typedef float Row __attribute__((vector_size(16)));
typedef float Row_unaligned __attribute__((vector_size(16), aligned(4), may_alias));
INLINE Row load_row(const float* p) { return *(const Row_unaligned*)p; }
INLINE void store_row(float* p, Row v) { *(Row_unaligned*)p = v; }

INLINE void load_colors(const float* p, Row& red, Row& green, Row& blue) {
    const Row a = load_row(p), b = load_row(p + 4), c = load_row(p + 8);  // rgbr gbrg brgb
    red = __builtin_shufflevector(__builtin_shufflevector(a, b, 0, 3, 6, 6), c, 0, 1, 2, 5);
    green = __builtin_shufflevector(__builtin_shufflevector(a, b, 1, 4, 7, 7), c, 0, 1, 2, 6);
    blue = __builtin_shufflevector(__builtin_shufflevector(a, b, 2, 5, 5, 5), c, 0, 1, 4, 7);
}

INLINE void store_colors(float* p, Row red, Row green, Row blue) {
    store_row(p, __builtin_shufflevector(__builtin_shufflevector(red, green, 0, 4, 1, 1), blue, 0, 1, 4, 2));
    store_row(p + 4, __builtin_shufflevector(__builtin_shufflevector(red, green, 5, 2, 6, 6), blue, 0, 5, 1, 2));
    store_row(p + 8, __builtin_shufflevector(__builtin_shufflevector(red, green, 3, 7, 7, 7), blue, 6, 0, 1, 7));
}

INLINE void store_thrice(float* p, Row v) {
    store_row(p, __builtin_shufflevector(v, v, 0, 0, 0, 1));
    store_row(p + 4, __builtin_shufflevector(v, v, 1, 1, 2, 2));
    store_row(p + 8, __builtin_shufflevector(v, v, 2, 3, 3, 3));
}

// The first `count` of a tile row's colours over the background, as bytes. Each operation rounds as torch's would.
INLINE void store_bytes(uint8_t* out, const float* background, const float* colors, const float* left, int count) {
    typedef uint8_t Bytes __attribute__((vector_size(W)));
    float behind[3 * TILE] = {};
    uint8_t bytes[3 * TILE];
    __builtin_memcpy(behind, background, sizeof(float) * count);
    for (int i = 0; i < 3 * TILE; i += W) {
        const F value = load(colors + i) + load(left + i) * load(behind + i);
        const F scaled = min(max(value, F{}), splat(1.0f)) * 255.0f + 0.5f;
        const Bytes rounded = __builtin_convertvector(__builtin_convertvector(scaled, I), Bytes);
        __builtin_memcpy(bytes + i, &rounded, W);
    }
    __builtin_memcpy(out, bytes, count);
}

struct alignas(64) BlockState {
    float transmittance[LANES];  // goes on falling after a pixel has stopped: below the minimum means stopped
    float red[LANES], green[LANES], blue[LANES], alpha[LANES];
};

INLINE void blend_block(const Chunk& chunk, int block, int x0, int y0, BlockState& state) {
    F x[G], y[G], t[G], red[G], green[G], blue[G], total[G];
    for (int g = 0; g < G; ++g) {
        block_pixels(x0, y0, g, x[g], y[g]);
        t[g] = load(state.transmittance + g * W);
        red[g] = load(state.red + g * W);
        green[g] = load(state.green + g * W);
        blue[g] = load(state.blue + g * W);
        total[g] = load(state.alpha + g * W);
    }
    const uint8_t* list = chunk.lists[block];
    const int length = chunk.lengths[block];
    for (int n = 0; n < length; ++n) {
        const int i = list[n];
        bool running = false;
        for (int g = 0; g < G; ++g) {
            const F dx = x[g] - chunk.x[i], dy = y[g] - chunk.y[i];
            F e = fnma(dx, fma(splat(chunk.a[i]), dx, chunk.b[i] * dy), splat(chunk.k[i]));
            e = fnma(chunk.c[i] * dy, dy, e);
            const Mask touched = at_least(e, splat(LOG2_ALPHA_MIN));
            const F alpha = keep(touched, min(exp2(e), splat(ALPHA_MAX)));
            const F before = t[g];
            t[g] = fnma(alpha, before, before);
            const Mask alive = greater(t[g], splat(TRANSMITTANCE_MIN));
            const F weight = keep(alive, alpha * before);
            red[g] = fma(weight, splat(chunk.red[i]), red[g]);
            green[g] = fma(weight, splat(chunk.green[i]), green[g]);
            blue[g] = fma(weight, splat(chunk.blue[i]), blue[g]);
            total[g] += weight;
            running |= any(alive);
        }
        if (!running) break;
    }
    for (int g = 0; g < G; ++g) {
        store(state.transmittance + g * W, t[g]);
        store(state.red + g * W, red[g]);
        store(state.green + g * W, green[g]);
        store(state.blue + g * W, blue[g]);
        store(state.alpha + g * W, total[g]);
    }
}

INLINE bool stopped(const BlockState& state) {
    for (int g = 0; g < G; ++g)
        if (any(greater(load(state.transmittance + g * W), splat(TRANSMITTANCE_MIN)))) return false;
    return true;
}

void blend(const BlendArgs& args, int tile) {
    const int x0 = tile % args.tiles_x * TILE, y0 = tile / args.tiles_x * TILE;
    const int columns = args.width - x0 < TILE ? args.width - x0 : TILE;
    const int rows = args.height - y0 < TILE ? args.height - y0 : TILE;
    const uint32_t begin = args.tile_offsets[tile], end = args.tile_offsets[tile + 1];
    args.tile_used[tile] = 0;
    if (begin == end && !args.bytes) {
        for (int row = 0; row < rows; ++row) {
            const int64_t pixel = (int64_t)(y0 + row) * args.width + x0;
            __builtin_memset(args.rgb + 3 * pixel, 0, sizeof(float) * 3 * columns);
            __builtin_memset(args.alpha + pixel, 0, sizeof(float) * columns);
        }
        return;
    }

    BlockState states[BLOCKS];
    for (int block = 0; block < BLOCKS; ++block) {
        BlockState& s = states[block];
        const int bx = block % (TILE / BLOCK) * BLOCK, by = block / (TILE / BLOCK) * BLOCK;
        __builtin_memset(&s, 0, sizeof s);
        for (int i = 0; i < LANES; ++i)
            s.transmittance[i] = bx + i % BLOCK < columns && by + i / BLOCK < rows ? 1.0f : 0.0f;
    }
    Chunk chunk;
    uint32_t done = 0;
    for (uint32_t first = begin; first < end && done != (1u << BLOCKS) - 1; first += CHUNK) {
        const int count = end - first < CHUNK ? (int)(end - first) : CHUNK;
        fill_chunk(chunk, args.splats, args.pairs + first, count);
        list_blocks(chunk, count, (float)x0, (float)y0);
        for (int i = 0; i < count; ++i) args.block_masks[first + i] = (uint16_t)chunk.masks[i];
        for (int block = 0; block < BLOCKS; ++block) {
            if (done >> block & 1 || !chunk.lengths[block]) continue;
            const int bx = block % (TILE / BLOCK) * BLOCK, by = block / (TILE / BLOCK) * BLOCK;
            blend_block(chunk, block, x0 + bx, y0 + by, states[block]);
            done |= (uint32_t)stopped(states[block]) << block;
        }
        args.tile_used[tile] = first + count - begin;
    }
    if (args.bytes) {
        for (int row = 0; row < rows; ++row) {
            float colors[3 * TILE], left[3 * TILE];
            for (int column = 0; column < TILE; column += BLOCK) {
                const BlockState& s = states[row / BLOCK * (TILE / BLOCK) + column / BLOCK];
                const int lane = row % BLOCK * BLOCK;
                store_colors(colors + 3 * column, load_row(s.red + lane), load_row(s.green + lane), load_row(s.blue + lane));
                store_thrice(left + 3 * column, 1.0f - load_row(s.alpha + lane));
            }
            const int64_t value = 3 * ((int64_t)(y0 + row) * args.width + x0);
            store_bytes(args.bytes + value, args.background + value, colors, left, 3 * columns);
        }
        return;
    }
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; column += BLOCK) {
            const BlockState& s = states[row / BLOCK * (TILE / BLOCK) + column / BLOCK];
            const int lane = row % BLOCK * BLOCK;
            const int64_t pixel = (int64_t)(y0 + row) * args.width + x0 + column;
            if (column + BLOCK <= columns) {
                store_colors(args.rgb + 3 * pixel, load_row(s.red + lane), load_row(s.green + lane), load_row(s.blue + lane));
                store_row(args.alpha + pixel, load_row(s.alpha + lane));
                continue;
            }
            for (int i = 0; i < columns - column; ++i) {
                args.rgb[3 * (pixel + i)] = s.red[lane + i];
                args.rgb[3 * (pixel + i) + 1] = s.green[lane + i];
                args.rgb[3 * (pixel + i) + 2] = s.blue[lane + i];
                args.alpha[pixel + i] = s.alpha[lane + i];
            }
        }
}

// The backward pass walks the splats front to back like the forward pass: the light still to come is the pixel's
// total minus what has been seen, so neither the last splat nor the final transmittance of a pixel need be stored,
// and a pixel stops exactly where it did. All light is taken as one number, its product with the image gradient.
struct alignas(64) BackwardState {
    float transmittance[LANES];
    float behind[LANES];  // dL/d(image) . (colour still to come) - dL/d(alpha image) * final transmittance
    float red[LANES], green[LANES], blue[LANES];  // dL/d(image)
};

// Sets a row of a block up from `pixel` on, of which `count` pixels are inside the image.
INLINE void load_gradients(const BlendBackwardArgs& args, BackwardState& s, int lane, int64_t pixel, int count) {
    float grad_rgb[12] = {}, rgb[12] = {}, grad_alpha[4] = {}, alpha[4] = {};
    const float *grad_rgb_at = grad_rgb, *rgb_at = rgb, *grad_alpha_at = grad_alpha, *alpha_at = alpha;
    if (count >= BLOCK) {
        rgb_at = args.forward.rgb + 3 * pixel;
        alpha_at = args.forward.alpha + pixel;
        if (args.grad_rgb) grad_rgb_at = args.grad_rgb + 3 * pixel;
        if (args.grad_alpha) grad_alpha_at = args.grad_alpha + pixel;
        count = BLOCK;
    } else {
        __builtin_memcpy(rgb, args.forward.rgb + 3 * pixel, sizeof(float) * 3 * count);
        __builtin_memcpy(alpha, args.forward.alpha + pixel, sizeof(float) * count);
        if (args.grad_rgb) __builtin_memcpy(grad_rgb, args.grad_rgb + 3 * pixel, sizeof(float) * 3 * count);
        if (args.grad_alpha) __builtin_memcpy(grad_alpha, args.grad_alpha + pixel, sizeof(float) * count);
    }
    Row red, green, blue, seen_red, seen_green, seen_blue;
    load_colors(grad_rgb_at, red, green, blue);
    load_colors(rgb_at, seen_red, seen_green, seen_blue);
    const Row left = 1.0f - load_row(alpha_at);
    store_row(s.red + lane, red);
    store_row(s.green + lane, green);
    store_row(s.blue + lane, blue);
    store_row(s.behind + lane, red * seen_red + green * seen_green + blue * seen_blue - load_row(grad_alpha_at) * left);
    for (int i = 0; i < count; ++i) s.transmittance[lane + i] = 1.0f;
}

template <bool absolute>
INLINE void blend_backward_tile(const BlendBackwardArgs& args, int tile) {
    const BlendArgs& forward = args.forward;
    const int x0 = tile % forward.tiles_x * TILE, y0 = tile / forward.tiles_x * TILE;
    const uint32_t begin = forward.tile_offsets[tile], end = forward.tile_offsets[tile + 1];
    if (begin == end) return;

    BackwardState states[BLOCKS];
    __builtin_memset(states, 0, sizeof states);
    const int columns = forward.width - x0 < TILE ? forward.width - x0 : TILE;
    const int rows = forward.height - y0 < TILE ? forward.height - y0 : TILE;
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; column += BLOCK)
            load_gradients(args, states[row / BLOCK * (TILE / BLOCK) + column / BLOCK], row % BLOCK * BLOCK,
                           (int64_t)(y0 + row) * forward.width + x0 + column, columns - column);
    F local_x[G], local_y[G];
    for (int g = 0; g < G; ++g) block_pixels(0, 0, g, local_x[g], local_y[g]);

    uint32_t running = (1u << BLOCKS) - 1;
    const uint32_t used = begin + forward.tile_used[tile];
    for (uint32_t n = begin; n < end; ++n) {
        const Pair ahead = forward.pairs[n + PREFETCH < end ? n + PREFETCH : n];
        __builtin_prefetch(&forward.splats[ahead.splat]);
        __builtin_prefetch(args.slots + (int64_t)ahead.slot * SLOT_FLOATS, 1);
        float* slot = args.slots + (int64_t)forward.pairs[n].slot * SLOT_FLOATS;
        uint32_t blocks = n < used ? forward.block_masks[n] & running : 0;
        if (!blocks) {
            __builtin_memset(slot, 0, sizeof(float) * SLOT_FLOATS);
            continue;
        }
        const Splat& s = forward.splats[forward.pairs[n].splat];
        F sums[11] = {};
        for (; blocks; blocks &= blocks - 1) {
            const int block = __builtin_ctz(blocks);
            BackwardState& state = states[block];
            // Splitting off the block's corner would round dx differently from the forward pass.
            const float bx = (float)(x0 + block % (TILE / BLOCK) * BLOCK), by = (float)(y0 + block / (TILE / BLOCK) * BLOCK);
            bool any_alive = false;
            for (int g = 0; g < G; ++g) {
                const F dx = (local_x[g] + bx) - s.x, dy = (local_y[g] + by) - s.y;
                F e = fnma(dx, fma(splat(s.a), dx, s.b * dy), splat(s.k));
                e = fnma(s.c * dy, dy, e);
                const Mask touched = at_least(e, splat(LOG2_ALPHA_MIN));
                const F free_alpha = exp2(e);
                F alpha = keep(touched, min(free_alpha, splat(ALPHA_MAX)));
                const F before = load(state.transmittance + g * W);
                const F after = fnma(alpha, before, before);
                store(state.transmittance + g * W, after);
                const Mask alive = greater(after, splat(TRANSMITTANCE_MIN));
                any_alive |= any(alive);
                alpha = keep(alive, alpha);
                const F weight = alpha * before;
                const F red = load(state.red + g * W), green = load(state.green + g * W);
                const F blue = load(state.blue + g * W);
                const F light = fma(red, splat(s.color[0]), fma(green, splat(s.color[1]), blue * s.color[2]));
                const F behind = fnma(weight, light, load(state.behind + g * W));
                store(state.behind + g * W, behind);
                const F grad_alpha = fnma(behind, reciprocal(1.0f - alpha), before * light);
                const F u = keep(at_least(splat(ALPHA_MAX), free_alpha), alpha * grad_alpha);
                const F ux = u * dx, uy = u * dy;
                sums[U] += u;
                sums[UX] += ux;
                sums[UY] += uy;
                sums[UXX] = fma(ux, dx, sums[UXX]);
                sums[UXY] = fma(ux, dy, sums[UXY]);
                sums[UYY] = fma(uy, dy, sums[UYY]);
                sums[RED] = fma(weight, red, sums[RED]);
                sums[GREEN] = fma(weight, green, sums[GREEN]);
                sums[BLUE] = fma(weight, blue, sums[BLUE]);
                if (absolute) {
                    // The quadric is in log2 units: d(sigma)/d(mean) = -ln 2 (2 a dx + b dy, b dx + 2 c dy).
                    sums[ABS_X] += abs(fma(splat(2.0f * s.a), ux, s.b * uy));
                    sums[ABS_Y] += abs(fma(splat(2.0f * s.c), uy, s.b * ux));
                }
            }
            if (!any_alive) running &= ~(1u << block);
        }
        sum_lanes8(sums, slot);
        slot[BLUE] = sum_lanes(sums[BLUE]);
        slot[ABS_X] = absolute ? LN2 * sum_lanes(sums[ABS_X]) : 0.0f;
        slot[ABS_Y] = absolute ? LN2 * sum_lanes(sums[ABS_Y]) : 0.0f;
    }
}

void blend_backward(const BlendBackwardArgs& args, int tile) {
    if (args.absolute)
        blend_backward_tile<true>(args, tile);
    else
        blend_backward_tile<false>(args, tile);
}

}  // namespace

#define NAME_TEXT_(x) #x
#define NAME_TEXT(x) NAME_TEXT_(x)
extern const Kernels KERNELS;
const Kernels KERNELS = {NAME_TEXT(ISA_NAME), project, blend, blend_backward, project_backward};

}  // namespace raster
