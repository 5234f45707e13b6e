// A batch of scenes: project, sort by depth, bin into tiles, blend; and back again. The C interface is at the end.
//
// Knows nothing of Python. Every stage shares out ranges or tiles that write only what they own, and every sum has a
// fixed order, so images and gradients have the same bits for any number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace raster {
namespace {

constexpr int RANGE = 1024;  // splats of one task

const Kernels* forced_kernels = nullptr;

const Kernels* available(int index) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (index == 0 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return &kernels_avx512;
    if (index == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kernels_avx2;
#endif
    return index == 2 ? &kernels_portable : nullptr;
}

const Kernels& kernels() {
    static const Kernels* best = [] {
        for (int i = 0; i < 3; ++i)
            if (const Kernels* found = available(i)) return found;
        return &kernels_portable;
    }();
    return forced_kernels ? *forced_kernels : *best;
}

// What the backward pass needs of one scene.
struct Scene {
    Camera camera;
    Gaussians in;
    std::vector<Splat> splats;
    std::vector<TileRect> rects;
    std::vector<uint32_t> depths;
    std::vector<uint32_t> slot_offsets;  // [N + 1]
    std::vector<uint32_t> tile_offsets;  // [tiles + 1]
    std::vector<uint32_t> tile_used;     // [tiles]
    std::vector<Pair> pairs;
    std::vector<uint16_t> block_masks;
    std::vector<float> slots;
    std::vector<uint32_t> order, scratch, cursor;
    const float* rgb = nullptr;
    const float* alpha = nullptr;

    void allocate(int n) {
        splats.resize(n);
        rects.resize(n);
        depths.resize(n);
        slot_offsets.resize(n + 1);
    }
    int tiles_x() const { return (camera.width + TILE - 1) / TILE; }
    int tiles() const { return tiles_x() * ((camera.height + TILE - 1) / TILE); }
    BlendArgs blend_args(float* rgb_out, float* alpha_out) {
        return {camera.width, camera.height, tiles_x(), splats.data(), pairs.data(), tile_offsets.data(),
                block_masks.data(), tile_used.data(), rgb_out, alpha_out, nullptr, nullptr};
    }
};

struct Context {
    std::vector<Scene> scenes;
    int n = 0;
};

std::mutex spare_mutex;
std::vector<std::unique_ptr<Context>> spare;  // buffers of finished calls: a frame need not allocate again

std::unique_ptr<Context> take_context(int batch) {
    std::unique_ptr<Context> context;
    {
        std::lock_guard<std::mutex> guard(spare_mutex);
        if (!spare.empty()) {
            context = std::move(spare.back());
            spare.pop_back();
        }
    }
    if (!context) context.reset(new Context);
    context->scenes.resize(batch);
    return context;
}

void give_context(std::unique_ptr<Context> context) {
    std::lock_guard<std::mutex> guard(spare_mutex);
    if (spare.size() < 4) spare.push_back(std::move(context));
}

// gsplat clamps x/z and y/z in the Jacobian to the image plus 15 % of its size on either side (0.3 of a half).
Camera make_camera(const float* w2c, const float* K, int width, int height) {
    Camera c;
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 3; ++j) c.rotation[3 * i + j] = w2c[4 * i + j];
        c.translation[i] = w2c[4 * i + 3];
    }
    c.fx = K[0];
    c.cx = K[2];
    c.fy = K[4];
    c.cy = K[5];
    const float margin_x = 0.3f * 0.5f * (float)width / c.fx, margin_y = 0.3f * 0.5f * (float)height / c.fy;
    c.x_high = ((float)width - c.cx) / c.fx + margin_x;
    c.x_low = -(c.cx / c.fx + margin_x);
    c.y_high = ((float)height - c.cy) / c.fy + margin_y;
    c.y_low = -(c.cy / c.fy + margin_y);
    c.width = width;
    c.height = height;
    return c;
}

bool camera_is_finite(const Camera& c) {
    float sum = c.fx + c.fy + c.cx + c.cy;
    for (float v : c.rotation) sum += v;
    for (float v : c.translation) sum += v;
    return std::isfinite(sum);
}

// Stable radix sort of `order` by `depths`, 11 bits at a time. Depths are bits of positive floats.
void sort_by_depth(Scene& s) {
    const size_t count = s.order.size();
    s.scratch.resize(count);
    uint32_t histogram[3][2048] = {};
    for (uint32_t i : s.order) {
        const uint32_t key = s.depths[i];
        ++histogram[0][key & 2047];
        ++histogram[1][key >> 11 & 2047];
        ++histogram[2][key >> 22];
    }
    for (int pass = 0; pass < 3; ++pass) {
        uint32_t* h = histogram[pass];
        bool is_sorted = false;
        for (int bin = 0, sum = 0; bin < 2048; ++bin) {
            is_sorted |= h[bin] == count;
            const int here = (int)h[bin];
            h[bin] = (uint32_t)sum;
            sum += here;
        }
        if (is_sorted) continue;
        const int shift = 11 * pass;
        for (uint32_t i : s.order) s.scratch[h[s.depths[i] >> shift & 2047]++] = i;
        s.order.swap(s.scratch);
    }
}

// The visible splats front to back, and the slots of each.
void order_by_depth(Scene& s, int n) {
    s.order.clear();
    uint32_t total = 0;
    for (int i = 0; i < n; ++i) {
        const TileRect r = s.rects[i];
        s.slot_offsets[i] = total;
        if (r.x1 <= r.x0) continue;
        total += (uint32_t)(r.x1 - r.x0) * (uint32_t)(r.y1 - r.y0);
        s.order.push_back((uint32_t)i);
    }
    s.slot_offsets[n] = total;
    s.pairs.resize(total);
    s.block_masks.resize(total);
    s.tile_offsets.assign(s.tiles() + 1, 0);
    s.tile_used.assign(s.tiles(), 0);
    sort_by_depth(s);
}

// Calls visit(splat, slot, tile) for the pairs in rows [first, end) of tiles, front to back. Each thread takes a band
// of rows and looks at every splat: cheaper than merging, and the order of a tile's pairs is the same for any bands.
template <class Visit>
void visit_pairs(const Scene& s, int first, int end, Visit visit) {
    const int tiles_x = s.tiles_x();
    for (uint32_t i : s.order) {
        const TileRect r = s.rects[i];
        const int width = r.x1 - r.x0;
        for (int y = std::max<int>(r.y0, first); y < std::min<int>(r.y1, end); ++y)
            for (int x = 0; x < width; ++x)
                visit(i, s.slot_offsets[i] + (uint32_t)((y - r.y0) * width + x), y * tiles_x + r.x0 + x);
    }
}

// Sorts the pairs of all scenes by tile, then depth.
void bin(Pool& pool, std::vector<Scene>& scenes, int n) {
    const int batch = (int)scenes.size(), tiles_y = scenes[0].tiles() / scenes[0].tiles_x();
    const int bands = batch >= pool.size() ? 1 : std::min({pool.size(), tiles_y, 8});
    auto for_bands = [&](auto body) {
        pool.run(batch * bands, [&](int task) {
            const int band = task % bands;
            body(scenes[task / bands], tiles_y * band / bands, tiles_y * (band + 1) / bands);
        });
    };
    pool.run(batch, [&](int b) { order_by_depth(scenes[b], n); });
    for_bands([](Scene& s, int first, int end) {
        visit_pairs(s, first, end, [&s](uint32_t, uint32_t, int tile) { ++s.tile_offsets[tile + 1]; });
    });
    for (Scene& s : scenes) {
        for (int t = 0; t < s.tiles(); ++t) s.tile_offsets[t + 1] += s.tile_offsets[t];
        s.cursor.assign(s.tile_offsets.begin(), s.tile_offsets.end() - 1);
    }
    for_bands([](Scene& s, int first, int end) {
        visit_pairs(s, first, end, [&s](uint32_t i, uint32_t slot, int tile) { s.pairs[s.cursor[tile]++] = Pair{i, slot}; });
    });
}

int ranges(int n) { return (n + RANGE - 1) / RANGE; }

}  // namespace
}  // namespace raster

using namespace raster;

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

extern "C" {

// Input arrays of a batch; a stride (in floats, from scene to scene) of 0 shares one array among all scenes.
struct RasterBatch {
    const float *means, *quats, *scales, *opacities, *colors;  // [B or 1, N, ...]
    int64_t means_stride, quats_stride, scales_stride, opacities_stride, colors_stride;
    const float* w2c;  // [B, 4, 4]
    const float* K;    // [B, 3, 3]
    int32_t batch, n, width, height;
};

struct RasterGradients {
    float *means, *quats, *scales, *opacities, *colors;  // shaped like the inputs, null where not wanted
    float* absgrad;                                       // [B, N], added to, or null
};

}  // extern "C"

namespace {

// Every scene of a batch up to its pixels, which go where output(scene, b) says. Returns as raster_forward.
template <class Output>
int32_t render(Context& context, const RasterBatch* in, Output output) {
    const Kernels& k = kernels();
    Shared threads = shared_pool();
    context.n = in->n;
    for (int b = 0; b < in->batch; ++b) {
        Scene& s = context.scenes[b];
        s.camera = make_camera(in->w2c + 16 * b, in->K + 9 * b, in->width, in->height);
        s.in = {in->means + b * in->means_stride, in->quats + b * in->quats_stride, in->scales + b * in->scales_stride,
                in->opacities + b * in->opacities_stride, in->colors + b * in->colors_stride};
        s.allocate(in->n);
    }
    const int per_scene = ranges(in->n);
    std::vector<char> finite((size_t)per_scene * in->batch, 1);
    threads.pool.run(per_scene * in->batch, [&](int task) {
        Scene& s = context.scenes[task / per_scene];
        const int begin = task % per_scene * RANGE, end = std::min(begin + RANGE, in->n);
        finite[task] = camera_is_finite(s.camera) &&
                       k.project({s.camera, s.in, s.splats.data(), s.rects.data(), s.depths.data()}, begin, end);
    });
    for (size_t task = 0; task < finite.size(); ++task)
        if (!finite[task]) return 1 + (int)(task / per_scene);
    bin(threads.pool, context.scenes, in->n);
    std::vector<BlendArgs> args;
    for (int b = 0; b < in->batch; ++b) args.push_back(output(context.scenes[b], b));
    const int tiles = context.scenes[0].tiles();
    threads.pool.run(tiles * in->batch, [&](int task) { k.blend(args[task / tiles], task % tiles); });
    return 0;
}

}  // namespace

extern "C" {

// Renders rgb [B, H, W, 3] and alpha [B, H, W]. Returns 0, or 1 + the number of the first scene with an input that is
// not finite. `*kept` receives what raster_backward needs if `keep`, else null; give it to raster_release.
EXPORT int32_t raster_forward(const RasterBatch* in, float* rgb, float* alpha, int32_t keep, void** kept) {
    std::unique_ptr<Context> context = take_context(in->batch);
    const int64_t pixels = (int64_t)in->width * in->height;
    const int32_t bad = render(*context, in, [=](Scene& s, int b) {
        s.rgb = rgb + 3 * pixels * b;
        s.alpha = alpha + pixels * b;
        return s.blend_args(rgb + 3 * pixels * b, alpha + pixels * b);
    });
    *kept = keep && !bad ? context.release() : nullptr;
    if (!*kept) give_context(std::move(context));
    return bad;
}

// Renders pictures [B, H, W, 3] over background [H, W, 3], 0..1. Returns as raster_forward.
EXPORT int32_t raster_paint(const RasterBatch* in, const float* background, uint8_t* pictures) {
    std::unique_ptr<Context> context = take_context(in->batch);
    const int64_t values = 3 * (int64_t)in->width * in->height;
    const int32_t bad = render(*context, in, [=](Scene& s, int b) {
        BlendArgs args = s.blend_args(nullptr, nullptr);
        args.background = background;
        args.bytes = pictures + values * b;
        return args;
    });
    give_context(std::move(context));
    return bad;
}

// Gradients of the batch that gave `kept`; its inputs, rgb and alpha must still stand where they stood.
// grad_rgb [B, H, W, 3] and grad_alpha [B, H, W] may be null.
EXPORT void raster_backward(void* kept, const RasterBatch* in, const float* grad_rgb, const float* grad_alpha,
                            const RasterGradients* out) {
    const Kernels& k = kernels();
    Shared threads = shared_pool();
    Context* context = (Context*)kept;
    const int64_t pixels = (int64_t)in->width * in->height;
    for (int b = 0; b < in->batch; ++b) context->scenes[b].slots.resize((size_t)context->scenes[b].pairs.size() * SLOT_FLOATS);
    const int tiles = context->scenes[0].tiles();
    threads.pool.run(tiles * in->batch, [&](int task) {
        const int b = task / tiles;
        Scene& s = context->scenes[b];
        BlendBackwardArgs args;
        args.forward = s.blend_args((float*)s.rgb, (float*)s.alpha);
        args.grad_rgb = grad_rgb ? grad_rgb + 3 * pixels * b : nullptr;
        args.grad_alpha = grad_alpha ? grad_alpha + pixels * b : nullptr;
        args.slots = s.slots.data();
        args.absolute = out->absgrad != nullptr;
        k.blend_backward(args, task % tiles);
    });
    threads.pool.run(ranges(in->n), [&](int task) {
        const int begin = task * RANGE, end = std::min(begin + RANGE, in->n);
        for (int b = 0; b < in->batch; ++b) {
            Scene& s = context->scenes[b];
            auto place = [b](float* base, int64_t stride) { return base ? base + b * stride : nullptr; };
            auto shared = [b](int64_t stride) { return stride == 0 && b > 0; };
            Gradients g;
            g.means = place(out->means, in->means_stride);
            g.quats = place(out->quats, in->quats_stride);
            g.scales = place(out->scales, in->scales_stride);
            g.opacities = place(out->opacities, in->opacities_stride);
            g.colors = place(out->colors, in->colors_stride);
            g.add_means = shared(in->means_stride);
            g.add_quats = shared(in->quats_stride);
            g.add_scales = shared(in->scales_stride);
            g.add_opacities = shared(in->opacities_stride);
            g.add_colors = shared(in->colors_stride);
            g.absgrad = place(out->absgrad, in->n);
            k.project_backward({s.camera, s.in, s.slot_offsets.data(), s.slots.data(), g}, begin, end);
        }
    });
}

EXPORT void raster_release(void* kept) {
    if (kept) give_context(std::unique_ptr<Context>((Context*)kept));
}

EXPORT void raster_set_threads(int32_t threads) { set_threads(threads); }

EXPORT const char* raster_instruction_set() { return kernels().name; }

// Name of available instruction set `index` (0 .. 2), best first, or null where this processor lacks it.
EXPORT const char* raster_available(int32_t index) {
    const Kernels* found = available(index);
    return found ? found->name : nullptr;
}

// Use the named instruction set from now on; null returns to the best. Returns 0 if this processor lacks it.
EXPORT int32_t raster_force(const char* name) {
    forced_kernels = nullptr;
    if (!name) return 1;
    for (int i = 0; i < 3; ++i) {
        const Kernels* found = available(i);
        if (found && !std::strcmp(found->name, name)) forced_kernels = found;
    }
    return forced_kernels != nullptr;
}
}
