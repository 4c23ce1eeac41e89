/*
 * A network's kernels, one after another, for each image by itself: one thread takes an image through all of
 * them, in memory of its own that stays in its caches, and then the next image. No thread waits for another
 * before the end, so one that is held up for a moment delays nobody; the others take more of the images.
 * The images that are left when there are not enough for all threads go through the kernels one by one, all
 * threads in each kernel. Which of both happens to an image changes none of its bits.
 */

#include <string.h>

#include "calls.h"

#define MOST_ARGUMENTS 24

#ifdef _OPENMP
int omp_get_thread_num(void);
#else
static int omp_get_thread_num(void) { return 0; }
#endif

typedef struct {
    kernel *kernel;
    const argument *arguments;
    const unsigned char *inside; /* which of them point into the program's memory */
    long count;
} call;

/* A tensor of the caller's, (images, bytes), and where an image of it lies in the program's memory. */
typedef struct {
    char *outside;
    char *inside;
    long bytes;
} port;

/* For one image: all pointers are those of the first thread; another's memory is `away` bytes from there. */
static void run_one(const call *calls, long count, long away)
{
    argument moved[MOST_ARGUMENTS];
    for (const call *each = calls; each < calls + count; each++) {
        memcpy(moved, each->arguments, each->count * sizeof *moved);
        for (long k = 0; k < each->count; k++)
            if (each->inside[k]) moved[k].pointer += away / (long)sizeof(float);
        each->kernel(1, moved);
    }
}

static void run_image(const call *calls, long count, const port *inputs, long input_count, const port *output,
                      long image, long away)
{
    for (const port *input = inputs; input < inputs + input_count; input++)
        memcpy(input->inside + away, input->outside + image * input->bytes, input->bytes);
    run_one(calls, count, away);
    memcpy(output->outside + image * output->bytes, output->inside + away, output->bytes);
}

/* arena: bytes of one thread's memory; they lie one behind another, `threads` of them. */
void denoised_run(const call *calls, long count, const port *inputs, long input_count, const port *output, long images,
                  long threads, long arena)
{
    long alone = images / threads * threads;
    if (2 * (images - alone) > threads) alone = images;
    if (alone > 0) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (long image = 0; image < alone; image++)
            run_image(calls, count, inputs, input_count, output, image, omp_get_thread_num() * arena);
    }
    for (long image = alone; image < images; image++)
        run_image(calls, count, inputs, input_count, output, image, 0);
}
