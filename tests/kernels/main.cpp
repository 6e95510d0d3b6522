// Every kernel of common/ops/src/kernels.cu on the CPU, against the same formula in f64.
//
// A case runs in three orders of blocks and threads, which must give equal bits. All memory is exactly as long as the shapes say and
// holds NaN until it is written, so that AddressSanitizer sees what lies outside and the comparison sees what was never written.

#include "kernels.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

using Numbers = std::vector<double>;
using Results = std::vector<Numbers>;
using shim::Order;

static float as(float, double x) { return (float)x; }
static double number(float x) { return x; }

// Memory of a device.
template <class T> class Memory {
    void *room;
    size_t n;

  public:
    T *at;

    // The numbers begin `shift` numbers behind an aligned address, as those of a part of a tensor do.
    explicit Memory(size_t n, size_t shift = 0) : n(n) {
        room = malloc((n + shift) * sizeof(T));
        memset(room, 0xff, (n + shift) * sizeof(T));
        at = (T *)room + shift;
    }
    explicit Memory(const Numbers &numbers, size_t shift = 0) : Memory(numbers.size(), shift) {
        for (size_t i = 0; i < n; i++) at[i] = as(T(), numbers[i]);
    }
    Memory(const Memory &) = delete;
    ~Memory() { free(room); }

    Numbers read() const {
        Numbers numbers(n);
        for (size_t i = 0; i < n; i++) numbers[i] = number(at[i]);
        return numbers;
    }
};

// Numbers between middle - 1 and middle + 1, which f32 holds exactly.
static Numbers random_numbers(size_t n, uint64_t seed, double middle = 0) {
    Numbers numbers(n);
    uint64_t state = seed * 0x9e3779b97f4a7c15u | 1;
    for (double &x : numbers) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        x = (double)(float)(middle + (double)(state >> 40) / (1 << 23) - 1);
    }
    return numbers;
}

static void check(const std::string &what, double tolerance, const Results &expected, const std::function<Results(Order)> &run) {
    Results first = run(Order::Forward);
    for (Order order : {Order::Backward, Order::Shuffled}) {
        Results again = run(order);
        for (size_t r = 0; r < first.size(); r++)
            for (size_t i = 0; i < first[r].size(); i++)
                if (memcmp(&first[r][i], &again[r][i], sizeof(double)) != 0) {
                    printf("%s: number %zu of result %zu depends on the order of the threads\n", what.c_str(), i, r);
                    exit(1);
                }
    }
    double worst = 0;
    for (size_t r = 0; r < expected.size(); r++) {
        double squares = 0;
        for (double x : expected[r]) squares += x * x;
        double size = std::sqrt(squares / (double)expected[r].size());
        for (size_t i = 0; i < expected[r].size(); i++) {
            double apart = std::fabs(first[r][i] - expected[r][i]) / (size + std::fabs(expected[r][i]));
            if (!(apart <= tolerance)) {
                printf("%s: number %zu of result %zu is %.9g instead of %.9g\n", what.c_str(), i, r, first[r][i], expected[r][i]);
                exit(1);
            }
            worst = std::max(worst, apart);
        }
    }
    printf("%s: %.1e\n", what.c_str(), worst);
}

static double sum(const Numbers &x) {
    double sum = 0;
    for (double v : x) sum += v;
    return sum;
}

static double cdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }
static double pdf(double x) { return std::exp(-0.5 * x * x) / std::sqrt(2 * M_PI); }

// dL/dx of L = sum of gy f(x), by differences.
static Numbers differences(Numbers x, const Numbers &gy, const std::function<Numbers(const Numbers &)> &f) {
    Numbers gradient(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        double kept = x[i], step = 1e-5;
        x[i] = kept + step;
        Numbers above = f(x);
        x[i] = kept - step;
        Numbers below = f(x);
        x[i] = kept;
        for (size_t k = 0; k < gy.size(); k++) gradient[i] += gy[k] * (above[k] - below[k]) / (2 * step);
    }
    return gradient;
}

// ---- Group norm ---------------------------------------------------------------------------------------------------------------

struct Group {
    int batch, channels, groups, pixels;
    double eps;
    bool silu;

    int size() const { return channels / groups * pixels; }
    size_t count() const { return (size_t)batch * channels * pixels; }

    Numbers forward(const Numbers &x, const Numbers &w, const Numbers &b) const {
        Numbers y(x.size());
        for (int g = 0; g < batch * groups; g++) {
            size_t from = (size_t)g * size();
            double mean = 0, variance = 0;
            for (int i = 0; i < size(); i++) mean += x[from + i] / size();
            for (int i = 0; i < size(); i++) variance += (x[from + i] - mean) * (x[from + i] - mean) / size();
            for (int i = 0; i < size(); i++) {
                int c = (int)((from + i) / pixels % channels);
                double u = (x[from + i] - mean) / std::sqrt(variance + eps) * w[c] + b[c];
                y[from + i] = silu ? u / (1 + std::exp(-u)) : u;
            }
        }
        return y;
    }

    // The gradients of x, and of w and b for each image.
    Results backward(const Numbers &x, const Numbers &w, const Numbers &b, const Numbers &gy) const {
        Numbers gx(x.size()), gw(batch * channels), gb(batch * channels);
        for (int g = 0; g < batch * groups; g++) {
            size_t from = (size_t)g * size();
            Numbers centred(size()), inner(size()); // x - mean, and the gradient of the normalised number
            double mean = 0, variance = 0, inner_mean = 0, product = 0;
            for (int i = 0; i < size(); i++) mean += x[from + i] / size();
            for (int i = 0; i < size(); i++) centred[i] = x[from + i] - mean, variance += centred[i] * centred[i] / size();
            double rstd = 1 / std::sqrt(variance + eps);
            for (int i = 0; i < size(); i++) {
                size_t channel = (from + i) / pixels, c = channel % channels;
                double normal = centred[i] * rstd, u = normal * w[c] + b[c], s = 1 / (1 + std::exp(-u));
                double gu = gy[from + i] * (silu ? s * (1 + u * (1 - s)) : 1);
                gw[channel] += gu * normal;
                gb[channel] += gu;
                inner[i] = gu * w[c];
                inner_mean += inner[i] / size();
                product += inner[i] * normal / size();
            }
            for (int i = 0; i < size(); i++) gx[from + i] = rstd * (inner[i] - inner_mean - centred[i] * rstd * product);
        }
        return {gx, gw, gb};
    }
};

static void group_norms() {
    for (Group s : {Group{2, 8, 4, 35, 1e-5, true}, Group{2, 6, 3, 70, 0.3, false}, Group{1, 4, 2, 300, 1e-5, true}, Group{3, 6, 3, 1, 0.1, true}}) {
        Numbers x = random_numbers(s.count(), 1, 2), w = random_numbers(s.channels, 2, 0.5), b = random_numbers(s.channels, 3);
        Numbers gy = random_numbers(s.count(), 4);
        unsigned blocks = s.batch * s.groups;
        float eps = (float)s.eps;
        for (unsigned threads : {32u, s.silu ? 96u : 512u}) {
            std::string what = "group_norm " + std::to_string(s.batch) + "x" + std::to_string(s.channels) + "x" + std::to_string(s.pixels) + " in " +
                               std::to_string(s.groups) + " groups" + (s.silu ? ", silu, " : ", ") + std::to_string(threads) + " threads";
            check(what, 3e-6, {s.forward(x, w, b)}, [&](Order order) -> Results {
                Memory<float> dx(x, 1), dw(w, 1), db(b, 1), y(s.count());
                shim::launch(blocks, threads, order, [&] { group_norm(dx.at, dw.at, db.at, y.at, s.size(), s.pixels, s.groups, eps, s.silu); });
                return {y.read()};
            });
            check(what + ", gradient", 1e-5, s.backward(x, w, b, gy), [&](Order order) -> Results {
                Memory<float> dx(x, 1), dw(w, 1), db(b, 1), dy(gy, 1), gx(s.count()), gw(s.batch * s.channels), gb(s.batch * s.channels);
                shim::launch(blocks, threads, order, [&] {
                    group_norm_grad(dx.at, dw.at, db.at, dy.at, gx.at, gw.at, gb.at, s.size(), s.pixels, s.groups, eps, s.silu);
                });
                return {gx.read(), gw.read(), gb.read()};
            });
        }
        if (s.count() > 1000) continue;
        Results formula = s.backward(x, w, b, gy);
        check("group_norm's formula against differences", 1e-7, {differences(x, gy, [&](auto &x) { return s.forward(x, w, b); })},
              [&](Order) -> Results { return {formula[0]}; });
    }
}

// ---- Layer norm ---------------------------------------------------------------------------------------------------------------

// A layer norm of rows of n is a group norm of images with one group, whose n channels have one pixel.
static void layer_norms() {
    for (auto [rows, n, eps] : {std::tuple{3, 7, 1e-5}, std::tuple{5, 33, 0.2}, std::tuple{2, 320, 1e-5}}) {
        Group s{rows, n, 1, 1, eps, false};
        Numbers x = random_numbers(s.count(), 1, 2), w = random_numbers(n, 2, 0.5), b = random_numbers(n, 3), gy = random_numbers(s.count(), 4);
        for (unsigned threads : {32, 128}) {
            std::string what = "layer_norm " + std::to_string(rows) + "x" + std::to_string(n) + ", " + std::to_string(threads) + " threads";
            check(what, 3e-6, {s.forward(x, w, b)}, [&](Order order) -> Results {
                Memory<float> dx(x, 1), dw(w, 1), db(b, 1), y(s.count());
                shim::launch(rows, threads, order, [&] { layer_norm(dx.at, dw.at, db.at, y.at, n, (float)eps); });
                return {y.read()};
            });
            Results expected = s.backward(x, w, b, gy);
            expected.pop_back(); // the caller sums gy
            check(what + ", gradient", 1e-5, expected, [&](Order order) -> Results {
                Memory<float> dx(x, 1), dw(w, 1), dy(gy, 1), gx(s.count()), gw(s.count());
                shim::launch(rows, threads, order, [&] { layer_norm_grad(dx.at, dw.at, dy.at, gx.at, gw.at, n, (float)eps); });
                return {gx.read(), gw.read()};
            });
        }
    }
}

// ---- Element by element -------------------------------------------------------------------------------------------------------

static void geglus() {
    for (auto [rows, width] : {std::pair<size_t, size_t>{3, 5}, {7, 130}}) {
        Numbers x = random_numbers(rows * 2 * width, 1), gy = random_numbers(rows * width, 2), y, gx(x.size());
        for (double &v : x) v *= 4;
        for (size_t i = 0; i < rows * width; i++) {
            size_t hidden = i / width * 2 * width + i % width, gate = hidden + width;
            y.push_back(x[hidden] * x[gate] * cdf(x[gate]));
            gx[hidden] = gy[i] * x[gate] * cdf(x[gate]);
            gx[gate] = gy[i] * x[hidden] * (cdf(x[gate]) + x[gate] * pdf(x[gate]));
        }
        for (unsigned blocks : {1, 5}) {
            std::string what = "geglu " + std::to_string(rows) + "x" + std::to_string(width) + ", " + std::to_string(blocks) + " blocks";
            check(what, 2e-6, {y}, [&](Order order) -> Results {
                Memory<float> dx(x, 1), out(y.size());
                shim::launch(blocks, 64, order, [&] { geglu(dx.at, out.at, rows * width, width); });
                return {out.read()};
            });
            check(what + ", gradient", 2e-6, {gx}, [&](Order order) -> Results {
                Memory<float> dx(x, 1), dy(gy, 1), out(x.size());
                shim::launch(blocks, 64, order, [&] { geglu_grad(dx.at, dy.at, out.at, rows * width, width); });
                return {out.read()};
            });
        }
    }
}

static void biases() {
    for (auto [batch, channels, pixels] : {std::tuple<size_t, size_t, size_t>{2, 3, 35}, {5, 7, 1}}) {
        Numbers y = random_numbers(batch * channels * pixels, 1), b = random_numbers(channels, 2), expected = y;
        for (size_t i = 0; i < y.size(); i++) expected[i] += b[i / pixels % channels];
        check("add_bias " + std::to_string(batch) + "x" + std::to_string(channels) + "x" + std::to_string(pixels), 1e-6, {expected}, [&](Order order) -> Results {
            Memory<float> dy(y, 1), db(b, 1);
            shim::launch(2, 64, order, [&] { add_bias(dy.at, db.at, y.size(), pixels, channels); });
            return {dy.read()};
        });
    }
}

static void sums_of_squares() {
    for (auto [n, blocks, threads] : {std::tuple<size_t, unsigned, unsigned>{1, 1, 32}, {1000, 3, 128}, {4099, 2, 256}}) {
        Numbers x = random_numbers(n, 1), expected(blocks);
        for (size_t i = 0; i < n; i++) expected[i / threads % blocks] += x[i] * x[i];
        check("squares of " + std::to_string(n), 2e-6, {expected}, [&](Order order) -> Results {
            Memory<float> dx(x, 1), sums(blocks);
            shim::launch(blocks, threads, order, [&] { squares(dx.at, sums.at, n); });
            return {sums.read()};
        });
    }
}

static void adamws() {
    const double beta1 = (float)0.9, beta2 = (float)0.995, decay = (float)0.98, rate = (float)0.05, root2 = (float)0.4, eps = (float)1e-3;
    size_t n = 1003;
    Numbers p = random_numbers(n, 1), m = random_numbers(n, 2), v = random_numbers(n, 3, 1), g = random_numbers(n, 4);
    Results expected = {p, m, v};
    for (size_t i = 0; i < n; i++) {
        double &m = expected[1][i], &v = expected[2][i], &p = expected[0][i];
        m = beta1 * m + (1 - beta1) * g[i];
        v = beta2 * v + (1 - beta2) * g[i] * g[i];
        p = decay * p - rate * m / (std::sqrt(v) / root2 + eps);
    }
    check("adamw", 2e-6, expected, [&](Order order) -> Results {
        Memory<float> dp(p, 1), dm(m, 1), dv(v, 1), dg(g, 1);
        shim::launch(3, 64, order, [&] {
            adamw(dp.at, dm.at, dv.at, dg.at, n, (float)beta1, (float)beta2, (float)decay, (float)rate, (float)root2, (float)eps);
        });
        return {dp.read(), dm.read(), dv.read()};
    });
}

int main() {
    group_norms();
    layer_norms();
    geglus();
    biases();
    sums_of_squares();
    adamws();
}
