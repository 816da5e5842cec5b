"""The PyTorch operators: schemas, derivatives, batching, and the short way of small calls.

schemas.py          the operators `lebm_kernels::*`: schema, shapes, implementation
derivatives.py      their backward, forward mode and vmap
second_order.py     second derivatives, tile by tile
sampling.py         draws from the posterior
eager.py            small calls on the CPU, without the operator's overhead
"""
