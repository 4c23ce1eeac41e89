/*
 * How a kernel is called: with how many images, and with all else in one list, so that a program can call any.
 */

#ifndef DENOISED_CALLS_H
#define DENOISED_CALLS_H

typedef union {
    float *pointer;
    long number;
    float real;
} argument;

typedef void kernel(long batch, const argument *arguments);

#endif
