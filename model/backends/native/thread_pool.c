/*
 * Evaluates a recorded graph: its kernels one after another, for a few images at a time (a chunk).
 *
 * One thread takes a chunk through all kernels, in an arena of its own, and then takes the next chunk. No thread waits
 * for another before the end, so a thread that is delayed for a moment delays none of the others: they take more of
 * the chunks. A chunk is one image if the weights stay in the caches; else it is several, which share each weight
 * that is read from memory.
 *
 * There are two ways to evaluate:
 * - `denoised_run`: the calling thread and OpenMP's threads, at once. Images that remain when there are fewer chunks
 *   than threads go through the kernels together, with all threads in each kernel.
 * - `denoised_pool_begin`: the threads of a pool, while the caller does something else. When they have taken all
 *   chunks of one evaluation, they go on with those of the next.
 * An image has the same bits either way.
 */

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernel_abi.h"

#define MAX_ARGUMENTS 24

#ifdef _OPENMP
int omp_get_thread_num(void);
void omp_set_num_threads(int);
#else
static int omp_get_thread_num(void) { return 0; }
static void omp_set_num_threads(int threads) { (void)threads; }
#endif

/* In the order of `kernel_abi.STRUCTURES`. */
const long denoised_struct_sizes[] = {sizeof(argument), sizeof(kernel_call), sizeof(io_binding), sizeof(evaluation)};

/* Call all kernels for some images, in the arena that lies `offset` bytes behind the first. */
static void run_calls(const kernel_call *calls, long count, long images, long offset)
{
    argument relocated[MAX_ARGUMENTS];
    for (const kernel_call *each = calls; each < calls + count; each++) {
        memcpy(relocated, each->arguments, each->count * sizeof *relocated);
        for (long k = 0; k < each->count; k++)
            if (each->in_arena[k]) relocated[k].pointer += offset / (long)sizeof(float);
        each->kernel(images, relocated);
    }
}

static void run_images(const evaluation *of, long first, long images, long thread)
{
    long offset = (of->first_arena + thread) * of->arena_bytes;
    for (const io_binding *input = of->inputs; input < of->inputs + of->input_count; input++)
        memcpy(input->arena + offset, input->caller + first * input->bytes, images * input->bytes);
    run_calls(of->calls, of->count, images, offset);
    memcpy(of->output.caller + first * of->output.bytes, of->output.arena + offset, images * of->output.bytes);
}

/* Evaluate now, with so many threads, the calling one among them. */
void denoised_run(const evaluation *of, long threads)
{
    /* Images whose chunks get a thread each; the rest gets all threads in each kernel, unless it keeps most threads
     * busy. */
    const long chunk = of->chunk;
    long threaded = of->images / (threads * chunk) * threads * chunk;
    if (2 * (of->images - threaded) > threads * chunk) threaded = of->images;
    if (threaded > 0) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (long first = 0; first < threaded; first += chunk)
            run_images(of, first, threaded - first < chunk ? threaded - first : chunk, omp_get_thread_num());
    }
    for (long first = threaded; first < of->images; first += chunk)
        run_images(of, first, of->images - first < chunk ? of->images - first : chunk, 0);
}

/* Threads, and a queue of the evaluations that are not finished, the oldest first. */
typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t added, finished;
    evaluation *first;
    long threads; /* that have started */
} thread_pool;

/* The oldest evaluation with images that no thread has taken; NULL if there is none. */
static evaluation *next_evaluation(thread_pool *pool)
{
    evaluation *each = pool->first;
    while (each && each->started == each->images) each = each->next;
    return each;
}

static void remove_evaluation(thread_pool *pool, evaluation *finished)
{
    evaluation **link = &pool->first;
    while (*link != finished) link = &(*link)->next;
    *link = finished->next;
}

static void *pool_thread(void *given)
{
    thread_pool *pool = given;
    omp_set_num_threads(1); /* in the kernels that this thread calls */
    pthread_mutex_lock(&pool->lock);
    long thread = pool->threads++;
    for (;;) {
        evaluation *of = next_evaluation(pool);
        if (!of) {
            pthread_cond_wait(&pool->added, &pool->lock);
            continue;
        }
        const long first = of->started, left = of->images - first, images = left < of->chunk ? left : of->chunk;
        of->started += images;
        pthread_mutex_unlock(&pool->lock);
        run_images(of, first, images, thread);
        pthread_mutex_lock(&pool->lock);
        of->finished += images;
        if (of->finished == of->images) {
            remove_evaluation(pool, of);
            pthread_cond_broadcast(&pool->finished);
        }
    }
    return NULL;
}

/* A pool of so many threads, which lasts as long as the process; NULL if the system has no threads left. */
thread_pool *denoised_pool_create(long threads)
{
    thread_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->added, NULL);
    pthread_cond_init(&pool->finished, NULL);
    for (long k = 0; k < threads; k++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, pool_thread, pool)) return NULL; /* those that started wait forever */
        pthread_detach(thread);
    }
    return pool;
}

/* Queue an evaluation. The pool reads and writes it until `denoised_pool_wait` has returned. */
void denoised_pool_begin(thread_pool *pool, evaluation *of)
{
    pthread_mutex_lock(&pool->lock);
    of->started = of->finished = 0;
    of->next = NULL;
    evaluation **link = &pool->first;
    while (*link) link = &(*link)->next;
    *link = of;
    pthread_cond_broadcast(&pool->added);
    pthread_mutex_unlock(&pool->lock);
}

/* Wait until all images of an evaluation are finished. */
void denoised_pool_wait(thread_pool *pool, evaluation *of)
{
    pthread_mutex_lock(&pool->lock);
    while (of->finished < of->images) pthread_cond_wait(&pool->finished, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}
