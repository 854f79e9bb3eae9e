"""Prints how many operations a second this machine makes in a matrix product of f32, with as many threads as OMP_NUM_THREADS says.

The best of several products, each large enough that nothing else counts: what a step could reach if it were nothing but such products.
"""

import time

import torch

SIZE = 2048
PRODUCTS = 8

a, b = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
out = torch.empty(SIZE, SIZE)
torch.mm(a, b, out=out)
seconds = []
for _ in range(PRODUCTS):
    started = time.perf_counter()
    torch.mm(a, b, out=out)
    seconds.append(time.perf_counter() - started)
print(2 * SIZE**3 / min(seconds))
