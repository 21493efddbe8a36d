/**
 * @file ptp.h
 * @brief C interface of libptp: answer questions about images with a bundle of ptp-export.
 *
 * The interface is plain C and stays binary compatible within one major version: structs that may grow begin with
 * their own size, which `ptp_*_init` fills in, by which a library tells its own from those of an older header; handles
 * are opaque.
 *
 * Errors. Every function that can fail returns a ptp_status, and never throws. ptp_last_error() has the sentence for
 * the calling thread's last failure on a session; ptp_open(), which has no session yet, writes it into a buffer. The
 * sentences are those of the Python runtime: what failed; got; expected; what to do.
 *
 * Threads. A session may be used by several threads at once, but generates one answer at a time: a second
 * ptp_generate() is refused with PTP_ERROR_BUSY while one runs, also from inside its callback. ptp_tiles and
 * ptp_visual do not change after they were made. No function keeps global state. A session must outlive every call
 * on it, not the tiles and visual tokens that it made.
 *
 * Text is UTF-8. Sizes are in bytes unless said otherwise; a size is checked wherever one is given.
 */
#ifndef PTP_H
#define PTP_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/** Marks what the library exports. */
#if defined(PTP_BUILDING) && defined(__GNUC__)
#define PTP_API __attribute__((visibility("default")))
#else
#define PTP_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** What a call came to; the errors are the classes of `ptp.errors`. */
typedef enum ptp_status {
    PTP_OK = 0,
    PTP_ERROR_CONFIG = 1,  /**< an argument or option has a value that cannot be used */
    PTP_ERROR_BUNDLE = 2,  /**< the bundle is malformed, incomplete or altered, or this version cannot run it */
    PTP_ERROR_IMAGE = 3,   /**< the image cannot be read */
    PTP_ERROR_PROMPT = 4,  /**< the question cannot be used with this bundle */
    PTP_ERROR_BACKEND = 5, /**< a backend is missing or failed */
    PTP_ERROR_MEMORY = 6,  /**< out of memory */
    PTP_ERROR_BUSY = 7     /**< the session is generating another answer */
} ptp_status;

/** Element type of a tensor. */
typedef enum ptp_dtype { PTP_FLOAT32 = 0, PTP_FLOAT16 = 1, PTP_INT64 = 2, PTP_INT32 = 3, PTP_BOOL = 4 } ptp_dtype;

/** Layout of a pixel in a buffer of 8-bit samples. */
typedef enum ptp_pixel_format {
    PTP_RGB = 0,
    PTP_RGBA = 1, /**< not premultiplied; composited over white */
    PTP_GRAY = 2
} ptp_pixel_format;

/** Why an answer ended. */
typedef enum ptp_stop_reason {
    PTP_STOP_EOS = 0,     /**< the model ended it */
    PTP_STOP_TEXT = 1,    /**< a stop text did */
    PTP_STOP_LENGTH = 2,  /**< it has `max_new_tokens` tokens */
    PTP_STOP_CALLBACK = 3 /**< the callback did */
} ptp_stop_reason;

/** A loaded bundle. */
typedef struct ptp_session ptp_session;
/** The encoder's input for one image. */
typedef struct ptp_tiles ptp_tiles;
/** The tokens that were kept of one image. */
typedef struct ptp_visual ptp_visual;

/** How a bundle is opened; fill in with ptp_options_init() first. */
typedef struct ptp_options {
    size_t struct_size;      /**< sizeof(ptp_options) */
    const char* backend;     /**< `onnxruntime` (default), `tensorrt` or `tensorrt-rtx` */
    const char* onnxruntime; /**< path of libonnxruntime.so; NULL: $PTP_ONNXRUNTIME, else the system's */
    const char* target;      /**< folder below `engines/<backend>/`; NULL: the only one that suits this GPU */
    int threads;             /**< CPU threads of one operator; 0: ONNX Runtime's choice */
    int vision_only;         /**< 1: leave the language model out, ptp_generate() is refused */
    int64_t max_pixels;      /**< of the largest image that is decoded, up to 100,000,000; 0: as many */
} ptp_options;

/** Sizes of a loaded bundle. */
typedef struct ptp_description {
    size_t struct_size;      /**< sizeof(ptp_description), set by the caller */
    int64_t tile_size;       /**< S, side of a tile in pixels */
    int64_t max_tiles;       /**< T, tiles of an image, thumbnail included */
    int64_t tokens_per_tile; /**< N */
    int64_t num_kept;        /**< K, rows of the vision graph; at the bundle's own keep */
    int64_t max_prompt;      /**< most text tokens of a prompt */
    int64_t hidden_size;     /**< H, length of a row */
    int64_t vocab_size;      /**< entries of the vocabulary */
    int64_t max_positions;   /**< most positions of the language model */
    int needs_question;      /**< 1: the question has a say in which tokens are kept */
    const char* model_id;    /**< checkpoint that was exported; lives as long as the session */
    const char* backend;     /**< backend and its version; lives as long as the session */
} ptp_description;

/** Pixels in memory. */
typedef struct ptp_image {
    const uint8_t* pixels;   /**< first row on top */
    size_t size;             /**< bytes that may be read at `pixels` */
    int32_t width;           /**< in pixels, at least 1 */
    int32_t height;          /**< in pixels, at least 1; width · height at most 100,000,000 */
    size_t stride;           /**< bytes from row to row; 0: rows are packed */
    ptp_pixel_format format; /**< layout of a pixel */
} ptp_image;

/** What ptp_tiles holds; pointers live as long as the tiles. */
typedef struct ptp_tiles_view {
    size_t struct_size;        /**< sizeof(ptp_tiles_view), set by the caller */
    const float* pixel_values; /**< (T, 3, S, S), normalised: thumbnail, crops in raster order, then zeros */
    int64_t max_tiles;         /**< T */
    int64_t tile_size;         /**< S */
    int64_t height;            /**< of the upright image, in pixels */
    int64_t width;             /**< of the upright image, in pixels */
    int64_t rows;              /**< of its crop grid */
    int64_t columns;           /**< of its crop grid */
} ptp_tiles_view;

/** How an image is encoded; fill in with ptp_encode_options_init() first. */
typedef struct ptp_encode_options {
    size_t struct_size; /**< sizeof(ptp_encode_options) */
    double alpha;     /**< weight of the question, 0 to 1; PTP_ALPHA_AUTO: by the graph; NaN (default): the bundle's */
    const char* keep; /**< fraction of visual tokens such as "0.25" where the bundle has a range; NULL: the bundle's */
} ptp_encode_options;

/** `alpha` is computed in the graph for each question. */
#define PTP_ALPHA_AUTO (-1.0)

/** What ptp_visual holds; pointers live as long as the visual tokens. */
typedef struct ptp_visual_view {
    size_t struct_size;          /**< sizeof(ptp_visual_view), set by the caller */
    int64_t count;               /**< n, tokens kept; K less the padding at the tail */
    int64_t hidden_size;         /**< H */
    ptp_dtype dtype;             /**< of `features` */
    const void* features;        /**< (n, H), the language model's input rows */
    const int64_t* positions;    /**< (n,), ascending: where each stands in the packed sequence */
    int64_t packed_length;       /**< M, length of the packed sequence before pruning */
    const int32_t* tile_budgets; /**< (T,), tokens given to each tile, thumbnail first */
    int64_t max_tiles;           /**< T */
    float alpha;                 /**< weight that the question had; NaN where the bundle does not look at it */
} ptp_visual_view;

/** How an answer is generated (greedily: the most likely token each time); see ptp_generate_options_init(). */
typedef struct ptp_generate_options {
    size_t struct_size;      /**< sizeof(ptp_generate_options) */
    int64_t max_new_tokens;  /**< most tokens generated, at least 1; default 128 */
    const char* const* stop; /**< texts that end the answer and are not part of it; may be NULL */
    size_t num_stop;         /**< how many */
} ptp_generate_options;

/**
 * Called for each token as it is generated, and once more with token -1 where text was held back till the end.
 *
 * @param user what was given to ptp_generate().
 * @param token the token's id; the end token is passed too.
 * @param text text that it completes, NUL-terminated, often empty: whole characters only.
 * @param size bytes of `text`, the NUL not counted.
 * @return 0 to go on, anything else to end the answer.
 */
typedef int (*ptp_token_callback)(void* user, int64_t token, const char* text, size_t size);

/** What an answer came to. */
typedef struct ptp_answer {
    size_t struct_size;            /**< sizeof(ptp_answer), set by the caller */
    int64_t num_tokens;            /**< tokens generated, the end token included */
    int64_t num_visual_tokens;     /**< rows that the image took in the language model's input */
    ptp_stop_reason stop_reason;   /**< why it ended */
    double seconds_to_first_token; /**< from the call to the first token: tokenising, embedding, prefill */
    double seconds;                /**< of the whole call */
} ptp_answer;

/** Return the library's version as text, such as "1.0.0". */
PTP_API const char* ptp_version(void);

/** Return a status as text, such as "PTP_ERROR_IMAGE". */
PTP_API const char* ptp_status_name(ptp_status status);

/* These are compiled into the application, so that they write what its header declares and no more. */

/** Fill in the defaults. */
static inline void ptp_options_init(ptp_options* options) {
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
}
/** Fill in the defaults. */
static inline void ptp_encode_options_init(ptp_encode_options* options) {
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
    options->alpha = NAN;
}
/** Fill in the defaults. */
static inline void ptp_generate_options_init(ptp_generate_options* options) {
    memset(options, 0, sizeof *options);
    options->struct_size = sizeof *options;
    options->max_new_tokens = 128;
}

/**
 * Verify a bundle (schema, sizes and SHA-256 of every file) and load its graphs.
 *
 * Verified hashes are remembered in `$XDG_CACHE_HOME/ptp-export`, which the Python runtime shares.
 *
 * @param folder the bundle's folder.
 * @param options how to open it; NULL for the defaults.
 * @param session set to the session, or to NULL on failure.
 * @param error where the error's sentence goes, cut to fit and NUL-terminated; may be NULL.
 * @param error_size bytes of `error`.
 */
PTP_API ptp_status ptp_open(const char* folder, const ptp_options* options, ptp_session** session, char* error,
                            size_t error_size);

/** Close a session; NULL is allowed. No other call on it may be running. */
PTP_API void ptp_close(ptp_session* session);

/** Return the calling thread's last error on a session, "" if none; valid until this thread's next call on it. */
PTP_API const char* ptp_last_error(ptp_session* session);

/** Write the sizes of a bundle. */
PTP_API ptp_status ptp_describe(ptp_session* session, ptp_description* description);

/** Make tiles of a JPEG or PNG file: EXIF orientation, grey, palette and transparency as in the Python runtime. */
PTP_API ptp_status ptp_tiles_from_file(ptp_session* session, const char* path, ptp_tiles** tiles);

/** Make tiles of a JPEG or PNG file in memory. */
PTP_API ptp_status ptp_tiles_from_memory(ptp_session* session, const void* data, size_t size, ptp_tiles** tiles);

/** Make tiles of upright pixels in memory. */
PTP_API ptp_status ptp_tiles_from_pixels(ptp_session* session, const ptp_image* image, ptp_tiles** tiles);

/** Write where the tiles' values are. */
PTP_API ptp_status ptp_tiles_get(const ptp_tiles* tiles, ptp_tiles_view* view);

/** Free tiles; NULL is allowed. */
PTP_API void ptp_tiles_free(ptp_tiles* tiles);

/**
 * Choose an image's visual tokens: encoder, packing and pruning, one call of the vision graph.
 *
 * @param session a session.
 * @param tiles the image, made by a session of the same bundle.
 * @param question the question; may be NULL where the bundle does not look at it.
 * @param options weights; NULL for the bundle's.
 * @param visual set to the visual tokens, or to NULL on failure.
 */
PTP_API ptp_status ptp_encode(ptp_session* session, const ptp_tiles* tiles, const char* question,
                              const ptp_encode_options* options, ptp_visual** visual);

/** Write where the visual tokens are. */
PTP_API ptp_status ptp_visual_get(const ptp_visual* visual, ptp_visual_view* view);

/** Free visual tokens; NULL is allowed. */
PTP_API void ptp_visual_free(ptp_visual* visual);

/**
 * Answer a question about an image; several questions may share its visual tokens.
 *
 * @param session a session.
 * @param visual the image, encoded by a session of the same bundle.
 * @param question the question.
 * @param options how; NULL for the defaults.
 * @param callback called for each token; may be NULL.
 * @param user passed to the callback.
 * @param answer where the result goes; may be NULL.
 */
PTP_API ptp_status ptp_generate(ptp_session* session, const ptp_visual* visual, const char* question,
                                const ptp_generate_options* options, ptp_token_callback callback, void* user,
                                ptp_answer* answer);

/**
 * Tokenise a question as ptp_generate() does; for applications with a language model of their own.
 *
 * The image stands between prefix and suffix.
 *
 * @param session a session.
 * @param question the question.
 * @param ids where the ids of prefix and suffix go.
 * @param capacity entries of `ids`; `max_prompt` always suffice.
 * @param prefix set to the number of ids before the image.
 * @param count set to the number of ids in all.
 */
PTP_API ptp_status ptp_tokenize(ptp_session* session, const char* question, int64_t* ids, size_t capacity,
                                size_t* prefix, size_t* count);

#ifdef __cplusplus
}
#endif

#endif
