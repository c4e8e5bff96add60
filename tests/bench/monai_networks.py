"""The peer's side of monai_step.py: training steps with MONAI's networks.

Runs in an environment of its own that holds monai and torch (see monai_pipeline.py). Widths and
losses are those of the other side: in stage 1 L1, spectral amplitude, commitment and least-squares
GAN; in stage 2 L1 of the velocity, of a U-Net with SPADE on the features of one label encoder.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext

import torch
from monai.losses import JukeboxLoss, PatchAdversarialLoss
from monai.networks.nets import VQVAE, PatchDiscriminator, SPADEDiffusionModelUNet
from monai_pipeline import ruler
from parts.stored import stored_mb
from torch import nn

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
UNET = dict(spatial_dims=3, in_channels=8, out_channels=8, label_nc=128, use_flash_attention=True)
SIZES = {"autoencoder": (64, 64, 64), "base": (128, 128, 64), "crossattn": (128, 128, 64)}


class Trainer:
    """The precision of a step and the updates of its networks."""

    def __init__(self, networks: list[nn.Module], device: torch.device, precision: str):
        self.device, self.dtype = device, DTYPES.get(precision)
        self.optimizers = [torch.optim.Adam(net.to(device).parameters(), 1e-4) for net in networks]
        enabled = precision == "16-mixed"
        self.scalers = [torch.amp.GradScaler(device.type, enabled=enabled) for _ in networks]

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def update(self, index: int, loss: Callable[[], torch.Tensor]) -> None:
        optimizer, scaler = self.optimizers[index], self.scalers[index]
        optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            value = loss()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()


def autoencoder_step(device: torch.device, precision: str) -> Callable[[], None]:
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
    )
    discriminator = PatchDiscriminator(
        spatial_dims=3, channels=32, in_channels=1, out_channels=1, num_layers_d=2
    )
    spectral = JukeboxLoss(spatial_dims=3)
    adversarial = PatchAdversarialLoss(criterion="least_squares")
    trainer = Trainer([autoencoder, discriminator], device, precision)
    image = torch.rand(1, 1, *SIZES["autoencoder"]).to(device)

    def step():
        def generator_loss():
            nonlocal reconstruction
            reconstruction, commitment = autoencoder(image)
            scores = discriminator(reconstruction.float())[-1]
            fooled = adversarial(scores, target_is_real=True, for_discriminator=False)
            l1 = nn.functional.l1_loss(reconstruction.float(), image)
            return l1 + commitment + spectral(reconstruction.float(), image) + 0.005 * fooled

        def discriminator_loss():
            fake = discriminator(reconstruction.detach().float())[-1]
            real = discriminator(image)[-1]
            loss = adversarial(fake, target_is_real=False, for_discriminator=True)
            return (loss + adversarial(real, target_is_real=True, for_discriminator=True)) / 2

        reconstruction = image
        trainer.update(0, generator_loss)
        trainer.update(1, discriminator_loss)

    return step


class LabelConditionedUNet(nn.Module):
    """One-hot labels -> features at the latents' resolution -> SPADE, as on the other side."""

    def __init__(self, **unet):
        super().__init__()
        halving = dict(kernel_size=4, stride=2, padding=1)
        layers = [nn.Conv3d(9, 32, **halving), nn.SiLU(), nn.Conv3d(32, 64, **halving), nn.SiLU()]
        self.labels = nn.Sequential(*layers, nn.Conv3d(64, 128, 3, padding=1))
        self.unet = SPADEDiffusionModelUNet(**UNET, **unet)

    def forward(self, x, time, labels, tokens):
        one_hot = nn.functional.one_hot(labels.long(), 9).movedim(-1, 1).to(x.dtype)
        return self.unet(x, 1000 * time, self.labels(one_hot), tokens)


def flow_step(network: str, device: torch.device, precision: str) -> Callable[[], None]:
    vessels = network == "crossattn"
    if vessels:
        widths = dict(channels=(128, 384, 576), attention_levels=(False, True, True))
        widths |= dict(num_res_blocks=1, num_head_channels=64)
        widths |= dict(with_conditioning=True, cross_attention_dim=256)
    else:
        widths = dict(channels=(64, 128, 256, 512), attention_levels=(False, False, True, True))
        widths |= dict(num_res_blocks=2, num_head_channels=32)
    unet = LabelConditionedUNet(**widths)
    trainer, size = Trainer([unet], device, precision), SIZES[network]
    latent = torch.randn(1, 8, *(n // 4 for n in size)).to(device)
    labels = torch.randint(9, (1, *size), dtype=torch.uint8).to(device)
    tokens = torch.randn(1, 2000, 256).to(device) if vessels else None

    def loss():
        noise, time = torch.randn_like(latent), torch.rand(1, device=device)
        x = (1 - time) * noise + time * latent
        velocity = unet(x, time, labels, tokens).float()
        return nn.functional.l1_loss(velocity, latent - noise)

    return lambda: trainer.update(0, loss)


def main() -> None:
    args = parse()
    measure, device = ruler(), torch.device(args.device)
    torch.manual_seed(0)
    if args.network == "autoencoder":
        work = autoencoder_step(device, args.precision)
    else:
        work = flow_step(args.network, device, args.precision)

    def step():
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    stored = stored_mb(step)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    measured = measure.measure(step, args.repeats)
    size = f"1 x {'x'.join(map(str, SIZES[args.network]))}"
    more = {"threads": torch.get_num_threads(), "device": args.device, "stored_mb": stored}
    line = measure.result(measured, size, **more)
    if device.type == "cuda":
        line["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    measure.show(args.network, "step", line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=SIZES)
    parser.add_argument("--precision", default="32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
