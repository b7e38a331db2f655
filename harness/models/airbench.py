"""A small convolutional network that learns CIFAR-10 in seconds (Jordan, arXiv 2404.00498).

As in the released airbench94 with Muon. Its author reports 94.01 % in eight epochs, which makes it
an anchor: a trainer that stays far below has a mistake.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.config.model_schema import AirbenchSpec
from harness.errors import UserError

LAST_POOL = 3
# Keeps directions in which the patches hardly vary from being blown up.
WHITENING_EPSILON = 5e-4


class WhitenedConvNet(nn.Module):
    """A fixed convolution that whitens patches, groups of convolutions and a linear head.

    Attributes:
        companion_parameters: Patterns of the parameters that are not hidden matrices.
    """

    companion_parameters = (r"^head\.",)

    def __init__(self, spec: AirbenchSpec, image_size: int, channels: int, classes: int) -> None:
        """Build the model; ``whiten`` completes it.

        Raises:
            UserError: If nothing is left of the images after all pooling.
        """
        super().__init__()
        self.patch = spec.patch_size
        if (image_size - self.patch + 1) >> len(spec.widths) < LAST_POOL:
            smallest = (LAST_POOL << len(spec.widths)) + self.patch - 1
            raise UserError(f"models.yaml: family airbench: found images of {image_size} pixels, "
                            f"expected at least {smallest}")  # fmt: skip
        whitened = 2 * channels * self.patch**2
        self.whitening = nn.Conv2d(channels, whitened, self.patch)
        self.whitening.weight.requires_grad_(False)
        inputs = (whitened, *spec.widths[:-1])
        self.groups = nn.Sequential(
            *(_Group(some, width) for some, width in zip(inputs, spec.widths, strict=True))
        )
        self.head = nn.Linear(spec.widths[-1], classes, bias=False)
        with torch.no_grad():
            self.head.weight.div_(self.head.weight.std())

    @torch.no_grad()
    def whiten(self, images_BCHW: Tensor) -> None:
        """Make the first convolution decorrelate the patches of normalised training images.

        Its kernels are the eigenvectors of the patches' covariance over the roots of their
        eigenvalues, each also with the opposite sign (section 3.1).
        """
        patches_BPN = F.unfold(images_BCHW.float(), self.patch)
        patches_NP = patches_BPN.transpose(0, 1).flatten(1)
        covariance_PP = patches_NP @ patches_NP.T / patches_NP.shape[1]
        values_P, vectors_PP = torch.linalg.eigh(covariance_PP)
        kernels_PP = vectors_PP.T / (values_P + WHITENING_EPSILON).sqrt().unsqueeze(1)
        weight = torch.cat([kernels_PP, -kernels_PP])
        self.whitening.weight.copy_(weight.view_as(self.whitening.weight))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B x classes) of normalised images."""
        x_BCHW = self.groups(F.gelu(self.whitening(images_BCHW)))
        features_BD = F.max_pool2d(x_BCHW, LAST_POOL).amax((2, 3))
        return self.head(features_BD) / features_BD.shape[1]


class _Group(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            _convolution(inputs, outputs),
            nn.MaxPool2d(2),
            _norm(outputs),
            nn.GELU(),
            _convolution(outputs, outputs),
            _norm(outputs),
            nn.GELU(),
        )


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution whose first kernels pass their input on (section 3.2)."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
    nn.init.dirac_(convolution.weight[:inputs])
    return convolution


def _norm(width: int) -> nn.BatchNorm2d:
    # Eight epochs are too few for the usual slow averages.
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
