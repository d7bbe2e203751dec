"""Kernels for GPUs, compiled by Triton: same inputs and outputs as the tensor operations that define them.

Import a module of this package only when it is to run (`vipe_kernels.backend` decides): Triton is an extra. Kernels compute in float32
whatever floating type they are given, and say where they sum in float64. None adds atomically, so the same input gives the same bits.
Launch shapes are fixed for reasons given beside them and not searched: a search would time every new size, and could choose differently
the next time. Triton launches on the current device, so every launch first makes the device of its data the current one.
"""
