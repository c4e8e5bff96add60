"""The peer's side of monai_vqvae.py: a training step with MONAI's VQVAE and PatchDiscriminator.

Runs in an environment of its own that holds monai and torch (see monai_pipeline.py). Widths and
losses are those of the other side: L1, spectral amplitude, commitment, least-squares GAN.
"""

import argparse
from contextlib import nullcontext

import torch
from monai.losses import JukeboxLoss, PatchAdversarialLoss
from monai.networks.nets import VQVAE, PatchDiscriminator
from monai_pipeline import ruler

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def main() -> None:
    args = parse()
    measure, device = ruler(), torch.device(args.device)
    torch.manual_seed(0)
    down, up = ((2, 4, 1, 1),) * 2, ((2, 4, 1, 1, 0),) * 2
    autoencoder = VQVAE(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(64, 128),
        num_res_layers=2,
        num_res_channels=(64, 128),
        downsample_parameters=down,
        upsample_parameters=up,
        num_embeddings=8192,
        embedding_dim=8,
        commitment_cost=0.25,
        decay=0.5,
    ).to(device)
    discriminator = PatchDiscriminator(
        spatial_dims=3, channels=32, in_channels=1, out_channels=1, num_layers_d=2
    ).to(device)
    spectral = JukeboxLoss(spatial_dims=3)
    adversarial = PatchAdversarialLoss(criterion="least_squares")
    optimizers = [torch.optim.Adam(net.parameters(), 1e-4) for net in (autoencoder, discriminator)]
    scalers = [
        torch.amp.GradScaler(device.type, enabled=args.precision == "16-mixed") for _ in optimizers
    ]
    image = torch.rand(args.batch, 1, *args.crop).to(device)
    dtype = DTYPES.get(args.precision)

    def autocast():
        return torch.autocast(device.type, dtype) if dtype else nullcontext()

    def update(loss, optimizer, scaler):
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def step():
        optimizers[0].zero_grad(set_to_none=True)
        with autocast():
            reconstruction, commitment = autoencoder(image)
            scores = discriminator(reconstruction.float())[-1]
            loss = torch.nn.functional.l1_loss(reconstruction.float(), image) + commitment
            loss = loss + spectral(reconstruction.float(), image)
            fooled = adversarial(scores, target_is_real=True, for_discriminator=False)
            loss = loss + 0.005 * fooled
        update(loss, optimizers[0], scalers[0])
        optimizers[1].zero_grad(set_to_none=True)
        with autocast():
            fake = discriminator(reconstruction.detach().float())[-1]
            real = discriminator(image)[-1]
            loss = adversarial(fake, target_is_real=False, for_discriminator=True)
            loss = (loss + adversarial(real, target_is_real=True, for_discriminator=True)) / 2
        update(loss, optimizers[1], scalers[1])
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    measured = measure.measure(step, args.repeats)
    size = f"{args.batch} x {'x'.join(map(str, args.crop))}"
    more = {"threads": torch.get_num_threads(), "device": args.device}
    line = measure.result(measured, size, **more)
    if device.type == "cuda":
        line["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    measure.show("autoencoder", "step", line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crop", type=int, nargs=3, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", default="32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
