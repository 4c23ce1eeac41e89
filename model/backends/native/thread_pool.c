/*
 * A network's kernels, one after another, for each image by itself: one thread takes an image through all of
 * them, in memory of its own that stays in its caches, and then the next image. No thread waits for another
 * before the end, so one that is held up for a moment delays nobody; the others take more of the images.
 *
 * An evaluation is made by who calls for it and OpenMP's threads: the images that are left when there are not
 * enough for all threads go through the kernels one by one, all threads in each kernel. Or it is flown: by
 * threads of our own, while the caller does something else. They take the next images as soon as one of them is
 * done, of the evaluation after this one, too. Which of all this happens to an image changes none of its bits.
 */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_abi.h"

#define MOST_ARGUMENTS 24

#ifdef _OPENMP
int omp_get_thread_num(void);
void omp_set_num_threads(int);
#else
static int omp_get_thread_num(void) { return 0; }
static void omp_set_num_threads(int threads) { (void)threads; }
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

/* Calls for so many images. arena: bytes of one thread's memory; they lie one behind another, `first` is the first
 * thread's. */
typedef struct evaluation {
    const call *calls;
    long count;
    const port *inputs;
    long input_count;
    port output;
    long images;
    long first;
    long arena;
    long begun; /* images that a thread has taken */
    long done;
    struct evaluation *next;
} evaluation;

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

static void run_image(const evaluation *of, long image, long thread)
{
    long away = (of->first + thread) * of->arena;
    for (const port *input = of->inputs; input < of->inputs + of->input_count; input++)
        memcpy(input->inside + away, input->outside + image * input->bytes, input->bytes);
    run_one(of->calls, of->count, away);
    memcpy(of->output.outside + image * of->output.bytes, of->output.inside + away, of->output.bytes);
}

void denoised_run(const evaluation *of, long threads)
{
    long alone = of->images / threads * threads;
    if (2 * (of->images - alone) > threads) alone = of->images;
    if (alone > 0) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (long image = 0; image < alone; image++) run_image(of, image, omp_get_thread_num());
    }
    for (long image = alone; image < of->images; image++) run_image(of, image, 0);
}

/* Threads and the evaluations that they fly, the one that came first in front. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t came, over;
    evaluation *first;
    long threads; /* that have begun */
} crew;

static evaluation *with_images_left(crew *crew)
{
    evaluation *each = crew->first;
    while (each && each->begun == each->images) each = each->next;
    return each;
}

static void leave(crew *crew, evaluation *done)
{
    evaluation **place = &crew->first;
    while (*place != done) place = &(*place)->next;
    *place = done->next;
}

static void *fly(void *given)
{
    crew *crew = given;
    omp_set_num_threads(1); /* in the kernels that this thread calls */
    pthread_mutex_lock(&crew->lock);
    long thread = crew->threads++;
    for (;;) {
        evaluation *of = with_images_left(crew);
        if (!of) {
            pthread_cond_wait(&crew->came, &crew->lock);
            continue;
        }
        long image = of->begun++;
        pthread_mutex_unlock(&crew->lock);
        run_image(of, image, thread);
        pthread_mutex_lock(&crew->lock);
        if (++of->done == of->images) {
            leave(crew, of);
            pthread_cond_broadcast(&crew->over);
        }
    }
    return NULL;
}

/* So many threads that wait for evaluations as long as the process lives; NULL where there are none to be had. */
crew *denoised_crew(long threads)
{
    crew *made = calloc(1, sizeof *made);
    if (!made) return NULL;
    pthread_mutex_init(&made->lock, NULL);
    pthread_cond_init(&made->came, NULL);
    pthread_cond_init(&made->over, NULL);
    for (long k = 0; k < threads; k++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, fly, made)) return NULL; /* those that there are sleep for ever */
        pthread_detach(thread);
    }
    return made;
}

/* Begin an evaluation, whose memory is ours until it was waited for. */
void denoised_begin(crew *crew, evaluation *of)
{
    pthread_mutex_lock(&crew->lock);
    of->begun = of->done = 0;
    of->next = NULL;
    evaluation **place = &crew->first;
    while (*place) place = &(*place)->next;
    *place = of;
    pthread_cond_broadcast(&crew->came);
    pthread_mutex_unlock(&crew->lock);
}

void denoised_wait(crew *crew, evaluation *of)
{
    pthread_mutex_lock(&crew->lock);
    while (of->done < of->images) pthread_cond_wait(&crew->over, &crew->lock);
    pthread_mutex_unlock(&crew->lock);
}
