"""Flow matching, diffusion, their solvers and guidance; the network is any callable."""
