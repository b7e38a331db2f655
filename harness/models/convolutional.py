"""torchvision's ResNet-18 with the usual stem for images of 32x32 pixels."""

from torch import Tensor, nn

from harness.torchvision_import import import_torchvision


class SmallImageResNet18(nn.Module):
    """ResNet-18 (He et al., arXiv 1512.03385) with a 3x3 first convolution and no max-pooling.

    Attributes:
        companion_parameters: Patterns of the parameters that are not hidden matrices.
    """

    companion_parameters = (r"^network\.conv1\.", r"^network\.fc\.")

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.network = import_torchvision().models.resnet18(num_classes=num_classes)
        self.network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.network.maxpool = nn.Identity()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B x classes) of normalised images."""
        return self.network(images_BCHW)
