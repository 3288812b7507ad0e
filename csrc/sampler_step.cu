// CUDA kernel of acefast.ops.sampler_step (K07), in one launch.
//
// Math    x <- x - v dt, or t_next eps + (1 - t_next) (x - v t); then what a repaint holds, as the op's docstring has it
// Tiling  a block per 256 frames x 16 channels of a song, 64 bytes of a row; a thread has 4 channels of 4 frames.
//         With omega twice as many blocks: the first half sum up v dt of their tiles in fp64, each of the others waits
//         for all of its song's and adds them in one order
// Bytes   B * T * D * (8 + velocity's + copy's itemsize): latents in and out, velocity in, copy out; with noise 4 more,
//         in a repaint's steps 8 more
// Bound   memory beyond some 10 minutes of song, latency below; fp64 arithmetic where eps is drawn here
#include "common/mean.cuh"

struct Shared {
  Warps warps;
  u32 ticket;
};

// Grid: the tiles, or with ``omega`` twice as many blocks; then ``sums`` is [B, tiles], and counters are 1 + B of
// turns.cuh.
template <typename T>
__device__ __forceinline__ void sampler_step(const Step<T>& s, const Rows<const T>& velocity, const float* omega,
                                             double* sums, u32* counters, const u32* lengths, int words, int T_, int D) {
  Shared& shared = *ptx::shared_memory<Shared>();
  const u32 blocks = omega ? gridDim.x / 2 : gridDim.x;
  const u32 ticket = omega ? take_ticket(counters, gridDim.x, &shared.ticket) : blockIdx.x;
  const Tile tile(ticket % blocks, lengths, words, T_, D);
  u32* const done = counters + 1 + tile.song;
  const int step = s.read(tile);
  Values v, x;
  tile.load(velocity, tile.valid, v);
  if (omega && ticket < blocks) {
    sum_changes(s, tile, step, v, sums, shared.warps);
    hand_over(done, 2 * tile.tiles);
    return;
  }
  tile.load(s.x, T_, x);
  float mean = 0;
  if (omega) {
    wait_for(done, tile.tiles);
    mean = mean_of_song(tile, sums, shared.warps);
  }
  s.take(tile, step, x, v, omega, mean);
  if (omega) hand_over(done, 2 * tile.tiles);
}

#define ENTRY(name, T)                                                                                              \
  extern "C" __global__ __launch_bounds__(THREADS) void name(                                                       \
      const float* x, i64 x_song, i64 x_frame, const T* v, i64 v_song, i64 v_frame, float* out, i64 out_song,       \
      i64 out_frame, T* copy, i64 copy_song, i64 copy_frame, const float* times, int step, int* clock,              \
      const float* noise, const u64* seeds, const unsigned char* mask, const float* source, const float* initial,   \
      const int* held, const u32* lengths, int words, const float* omega, double* sums, u32* counters, int frames,  \
      int channels) {                                                                                               \
    const Step<T> s{{x, x_song, x_frame}, {out, out_song, out_frame}, {copy, copy_song, copy_frame},                \
                    times, step, clock, noise, seeds, mask, source, initial, held};                                 \
    sampler_step<T>(s, {v, v_song, v_frame}, omega, sums, counters, lengths, words, frames, channels);              \
  }
ENTRY(sampler_step_bf16, bf16)
ENTRY(sampler_step_fp16, fp16)
ENTRY(sampler_step_fp32, float)
