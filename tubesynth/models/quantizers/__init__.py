"""What stands between encoder and decoder: a learned codebook, fixed levels, or a Gaussian.

One question has three answers here: what the encoder's output becomes in a training step
(`forward`), what of it stage 2 models (`latents`), and what the decoder is given for that
(`quantize`). vqvae.py states the interface.

              channels of the encoder   latents of stage 2           the decoder is given
    ema_vq    D                         as encoded                   the nearest codes
    fsq       D, one for each scalar    bounded, in units of levels  the nearest levels, in [-1, 1]
    kl        2 D: mean, log-variance   the mean                     the latents as they are
"""
