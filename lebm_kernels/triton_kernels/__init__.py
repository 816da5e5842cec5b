"""The free energy's kernels in Triton, one file an operation.

    arguments.py      the problem as the kernels take it, and the table of block sizes
    programs.py       where a program is, what lies there, and sums of shares
    pairs.py          what is done to a pair or a tile of pairs, shared by the kernels
    references.py     D <= 4: what energies and log-weights are looked at from
    rows.py           D <= 4, queries outside: partial sums over a share of the latents
    tiled_rows.py     any D: the same partial sums, by tiles
    finish.py         shares merged; F, its state and the slopes; which queries are hot
    hot.py            of these, what a sum of exponentials near one has lost
    index.py          the latent of least energy
    columns.py        D <= 4, latents outside: gradients of decoded and latent_energy
    tiled_columns.py  the same for any D
    weights.py        the gradient of log_weight
    launch.py         rows() and columns(): which kernels run, on what

Imported only when the backend first runs: Triton itself takes its time.
"""
