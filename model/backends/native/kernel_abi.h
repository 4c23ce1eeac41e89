/*
 * How Python calls this library. `kernel_abi.py` declares the same structures for ctypes; their sizes are compared
 * when the library is loaded (`denoised_struct_sizes`).
 *
 * Every kernel takes the number of images and a list of all other arguments, so that a recorded graph can call
 * kernels of any signature.
 */

#ifndef DENOISED_KERNEL_ABI_H
#define DENOISED_KERNEL_ABI_H

typedef union {
    float *pointer;
    long number;
    float real;
} argument;

typedef void kernel(long batch, const argument *arguments);

/* One call of a recorded graph, for any number of images. */
typedef struct {
    kernel *kernel;
    const argument *arguments;
    const unsigned char *in_arena; /* for each argument: whether it points into the arena */
    long count;
} kernel_call;

/* An input or the output of a graph: where the caller has it, and where an image of it is in the first arena. */
typedef struct {
    char *caller; /* (images, bytes) */
    char *arena;
    long bytes; /* of one image */
} io_binding;

/*
 * One evaluation of a recorded graph. Every thread works in an arena of its own; arenas lie one behind another, and
 * all pointers in `calls` are those of the first.
 */
typedef struct evaluation {
    const kernel_call *calls;
    long count;
    const io_binding *inputs;
    long input_count;
    io_binding output;
    long images;
    long chunk; /* images that one thread takes through the kernels together; the arenas are large enough */
    long first_arena; /* the arena of the first thread of this evaluation */
    long arena_bytes;
    /* Of the thread pool, under its lock: */
    long started; /* images that a thread has taken */
    long finished;
    struct evaluation *next;
} evaluation;

#endif
