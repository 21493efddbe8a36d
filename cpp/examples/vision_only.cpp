// Pruned embeddings and their positions, for applications with a language model of their own: only the vision part of
// a bundle is loaded. vision_only BUNDLE IMAGE QUESTION OUT.bin [BACKEND]
//
// OUT.bin: rows and hidden size as int64, then the positions (int64), then the rows in the bundle's precision.
#include <fstream>
#include <iostream>
#include <vector>

#include <ptp.hpp>

namespace {

void write(std::ofstream& file, const void* data, size_t size) {
    file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
}

void run(char** words, const char* backend, const char* target) {
    const char *bundle = words[0], *image = words[1], *question = words[2], *out = words[3];
    ptp_options options = ptp::default_options();
    options.vision_only = 1;
    options.backend = backend;
    options.target = target;
    const ptp::Session session(bundle, options);

    // the application's own language model gets these ids, the image's rows between prefix and the rest
    const ptp::Session::Prompt prompt = session.tokenize(question);
    const ptp::Tiles tiles = session.tiles(image);
    const ptp::Visual visual = session.encode(tiles, question);
    const ptp_visual_view view = visual.view();
    const size_t width = view.dtype == PTP_FLOAT16 ? 2 : 4, rows = static_cast<size_t>(view.count);

    std::ofstream file(out, std::ios::binary);
    write(file, &view.count, sizeof view.count);
    write(file, &view.hidden_size, sizeof view.hidden_size);
    write(file, view.positions, rows * sizeof *view.positions);
    write(file, view.features, rows * static_cast<size_t>(view.hidden_size) * width);
    std::cout << session.describe().backend << ": " << view.count << " of " << view.packed_length << " tokens kept, "
              << prompt.prefix << " text tokens before them and " << prompt.ids.size() - prompt.prefix << " after\n";
}

}  // namespace

int main(int count, char** words) {
    if (count < 5 || count > 7) {
        std::cerr << "usage: vision_only BUNDLE IMAGE QUESTION OUT.bin [BACKEND [TARGET]]\n";
        return 2;
    }
    try {
        run(words + 1, count > 5 ? words[5] : nullptr, count > 6 ? words[6] : nullptr);
    } catch (const ptp::Failure& failure) {
        std::cerr << "error: " << failure.what() << '\n';
        return 1;
    }
    return 0;
}
