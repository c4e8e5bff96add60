"""Quantizers between encoder and decoder: a learned codebook, fixed levels, or a Gaussian.

Each has the same interface: `forward` in a training step, `latents` for stage 2, `quantize`
before the decoder.

              encoder channels          latents of stage 2           decoder input
    ema_vq    D                         encoder output               nearest codes
    fsq       D, one per scalar         bounded, in units of levels  nearest levels, in [-1, 1]
    kl        2 D: mean, log-variance   mean                         latents, unchanged
"""
