// Philox passes the published known answers, in the core function and in every instruction set's lanes, and the counter
// layout of csrc/core/philox.h gives every random number a counter of its own.
#include <stdlib.h>

#include <vector>

#include "core/conductance.h"
#include "tests/check.h"

using namespace nft::generic;
using nft_test::expect;

namespace {

struct Answer {
  uint32_t counter[4], key[2], words[4];
};

std::vector<Answer> known_answers() {
  const char* path = NFT_TEST_DATA "/philox_known_answers.txt";
  FILE* file = fopen(path, "r");
  if (!file) {
    printf("FAILED cannot read %s\n", path);
    exit(1);
  }
  std::vector<Answer> answers;
  char line[256];
  while (fgets(line, sizeof line, file)) {
    if (line[0] == '#') continue;
    Answer a;
    uint32_t *c = a.counter, *k = a.key, *w = a.words;
    const int read =
        sscanf(line, "%x %x %x %x %x %x %x %x %x %x", c, c + 1, c + 2, c + 3, k, k + 1, w, w + 1, w + 2, w + 3);
    expect(read == 10, "%s: not ten words: %s", path, line);
    answers.push_back(a);
  }
  fclose(file);
  expect(answers.size() == 3, "%s: %zu vectors, not 3", path, answers.size());
  return answers;
}

void core_function(const std::vector<Answer>& answers) {
  for (const Answer& a : answers) {
    uint32_t c[4];
    memcpy(c, a.counter, sizeof c);
    philox(c[0], c[1], c[2], c[3], a.key[0], a.key[1]);
    for (int i = 0; i < 4; ++i)
      expect(c[i] == a.words[i], "core: word %d is %08x, published %08x", i, c[i], a.words[i]);
  }
}

// Each answer in every lane: at every position of arrays of 1 .. 72 counters, random ones around it.
void kernel_lanes(const nft::Kernels& k, const std::vector<Answer>& answers) {
  nft_test::Words random(3);
  for (const Answer& a : answers) {
    for (int n = 1; n <= 72; ++n) {
      const int place = (int)(random.next() % (uint32_t)n);
      std::vector<uint32_t> counters(4 * n), words(4 * n + 1, 0xabababab);
      for (uint32_t& c : counters) c = random.next();
      memcpy(&counters[4 * place], a.counter, sizeof a.counter);
      k.philox(counters.data(), a.key, n, words.data());
      expect(memcmp(&words[4 * place], a.words, sizeof a.words) == 0, "%s: wrong words at place %d of %d", k.name,
             place, n);
      for (int i = 0; i < n; ++i) {
        uint32_t* c = &counters[4 * i];
        philox(c[0], c[1], c[2], c[3], a.key[0], a.key[1]);
        expect(memcmp(c, &words[4 * i], 16) == 0, "%s: counter %d of %d differs from the core function", k.name, i, n);
      }
      expect(words[4 * n] == 0xabababab, "%s: writes past %d counters", k.name, n);
    }
  }
}

void expect_normals(const char* who, const float* z, const uint32_t* words) {
  float expected[4];
  box_muller(words[0], words[1], expected[0], expected[1]);
  box_muller(words[2], words[3], expected[2], expected[3]);
  for (int i = 0; i < 4; ++i)
    expect(nft_test::same_bits(z[i], expected[i]), "%s: normal %d is %a, its words give %a", who, i, z[i], expected[i]);
}

// The first two answers are counters of the noise itself, so the sampler must give their normals: the very first quad
// (seed, stream, draw, domain, slice all 0), and the very last quad of the fast path (every bit set).
void through_the_sampler(const nft::Kernels& k, const std::vector<Answer>& answers) {
  const int64_t first_key[2] = {0, 0};
  float z[4];
  k.normals(first_key, 0, 0, 4, z);
  expect_normals(k.name, z, answers[0].words);

  // One-bit weights of table (mean 0, std 1) and step 1: the programmed weight is the normal itself. The quad sits 2^50
  // weights into the tensor; only its last chunk exists, so the pointers are moved back by as much.
  const int64_t last_key[2] = {-1, (int64_t(0xff) << 32) | 0xffffffff};
  const float table[4] = {0, 0, 1, 1};
  float weight[nft::kChunk], out[nft::kChunk];
  for (float& w : weight) w = 1.0f;
  nft::Program p{};
  p.n = int64_t(1) << 50;
  const int64_t chunk = p.n / nft::kChunk - 1, offset = chunk * nft::kChunk * (int64_t)sizeof(float);
  p.weight = (const float*)((uintptr_t)weight - (uintptr_t)offset);
  p.out = (void*)((uintptr_t)out - (uintptr_t)offset);
  p.step = 1.0f;
  p.weight_bits = p.device_bits = 1;
  p.path = kPathFast;
  p.table = table;
  p.keys = last_key;
  p.chips = 1;
  p.stream = 0xffffffffu;
  p.out_type = nft::OutType::kFloat32;
  k.program(p, chunk, chunk + 1);
  expect_normals(k.name, out + nft::kChunk - 4, answers[1].words);
}

// Which of the 192 bits of (seed, counter) a single bit of the input moves: exactly one, and no two inputs the same.
void layout() {
  struct Field {
    const char* name;
    int bits;
  };
  const Field fields[] = {{"seed", 64}, {"draw", 32}, {"domain", 8}, {"stream", 32}, {"slice", 8}, {"quad", 48}};
  auto place = [](int field, uint64_t value, uint32_t out[6]) {
    const uint64_t v[6] = {field == 0 ? value : 0, field == 1 ? value : 0, field == 2 ? value : 0,
                           field == 3 ? value : 0, field == 4 ? value : 0, field == 5 ? value : 0};
    const Key key = make_key((int64_t)v[0], (int64_t)(v[1] | v[2] << 32), (uint32_t)v[3]);
    out[0] = key.k0;
    out[1] = key.k1;
    out[2] = counter0(v[5]);
    out[3] = counter1(v[5], (uint32_t)v[4], key.domain);
    out[4] = key.stream;
    out[5] = key.draw;
  };
  uint32_t seen[6] = {};
  for (int f = 0; f < 6; ++f)
    for (int bit = 0; bit < fields[f].bits; ++bit) {
      uint32_t out[6];
      place(f, uint64_t(1) << bit, out);
      int moved = 0;
      for (int i = 0; i < 6; ++i) {
        moved += __builtin_popcount(out[i]);
        expect((seen[i] & out[i]) == 0, "bit %d of %s shares a place in the counter", bit, fields[f].name);
        seen[i] |= out[i];
      }
      expect(moved == 1, "bit %d of %s moves %d bits", bit, fields[f].name, moved);
    }
  for (uint32_t word : seen) expect(word == 0xffffffffu, "a word of the counter or key is not fully used: %08x", word);
}

// Up to 16 devices per weight: the slices of all purposes are distinct and fit their 8 bits.
void slices() {
  bool used[256] = {};
  auto take = [&](uint32_t slice) {
    expect(slice < 256 && !used[slice], "slice %u is taken twice or too large", slice);
    used[slice & 255] = true;
  };
  for (uint32_t j = 0; j < 16; ++j)
    for (uint32_t base : {kSliceActive, kSliceIdle, kSliceFault, kSliceIdleFault}) take(base + j);
  take(kSliceWeight);
}

}  // namespace

int main() {
  const std::vector<Answer> answers = known_answers();
  core_function(answers);
  nft_test::each_instruction_set([&](const nft::Kernels& k) {
    kernel_lanes(k, answers);
    through_the_sampler(k, answers);
  });
  layout();
  slices();
  return nft_test::exit_code("philox");
}
