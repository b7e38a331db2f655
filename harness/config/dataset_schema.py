"""Schema of ``config/datasets.yaml``: where text and images come from and how they are prepared."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from harness.config.base import Spec


class PythonStandardLibrary(Spec):
    """Source code and docstrings of the running Python's own standard library: no download."""

    type: Literal["python_standard_library"]


class LocalText(Spec):
    """A file or folder of .txt, .jsonl or .parquet files on this machine."""

    type: Literal["local"]
    path: str = Field(description="absolute, or relative to the folder named by HARNESS_DATA")
    column: str = Field("text", description="column that holds the text (.jsonl and .parquet)")


class HubText(Spec):
    """A dataset of the hub, streamed, or read from a copy at its path below HARNESS_DATA."""

    type: Literal["huggingface"]
    path: str = Field(description="repository, e.g. HuggingFaceFW/fineweb-edu")
    name: str | None = Field(None, description="configuration of the repository")
    split: str = "train"
    column: str = "text"
    revision: str | None = Field(None, description="commit of the repository, to pin the data")
    files: str | None = Field(
        None, description="pattern of the configuration's files, which a copy has, in their order"
    )


class BytesTokenizer(Spec):
    """One token per byte and one for the end of a text: 257 tokens."""

    type: Literal["bytes"]


class TrainedBpe(Spec):
    """A byte-level BPE trained on the training split."""

    type: Literal["bpe"]
    vocab_size: int = Field(ge=258, description="bytes, merges and the end-of-text token")


class HubTokenizer(Spec):
    """The tokenizer.json of a hub repository, or of a copy at its path below HARNESS_DATA."""

    type: Literal["huggingface"]
    path: str


class TokenizerFile(Spec):
    """A tokenizer.json on this machine."""

    type: Literal["tokenizer_file"]
    path: str = Field(description="absolute, or relative to the folder named by HARNESS_DATA")


class Gpt2Files(Spec):
    """GPT-2's vocab.json and merges.txt on this machine."""

    type: Literal["gpt2_files"]
    vocabulary: str = Field(description="absolute, or relative to the folder of HARNESS_DATA")
    merges: str


class TextDataset(Spec):
    """Text that is tokenised once into memory-mapped shards."""

    kind: Literal["text"]
    source: Annotated[PythonStandardLibrary | LocalText | HubText, Field(discriminator="type")]
    tokenizer: Annotated[
        BytesTokenizer | TrainedBpe | HubTokenizer | TokenizerFile | Gpt2Files,
        Field(discriminator="type"),
    ]
    validation_fraction: float = Field(0.05, gt=0, lt=0.5, description="share of the documents")
    test_fraction: float = Field(0.05, gt=0, lt=0.5, description="share of the documents")
    maximum_bytes: PositiveInt | None = Field(
        None, description="stop reading the source after this many bytes of text"
    )


class Digits(Spec):
    """The 1,797 handwritten 8x8 digits that come with scikit-learn: no download."""

    type: Literal["sklearn_digits"]


class TorchvisionCifar10(Spec):
    """The original CIFAR-10 archive through torchvision.datasets."""

    type: Literal["torchvision_cifar10"]
    root: str = Field("cifar10", description="absolute, or relative to HARNESS_DATA")


class ImageParquet(Spec):
    """`train.parquet` and `test.parquet` with encoded images, as the hub lays out `cifar10`."""

    type: Literal["parquet"]
    path: str = Field(description="folder; absolute, or relative to HARNESS_DATA")
    image_column: str = "img"
    label_column: str = "label"


class ImageDataset(Spec):
    """Images that are decoded once to unsigned bytes."""

    kind: Literal["images"]
    source: Annotated[Digits | TorchvisionCifar10 | ImageParquet, Field(discriminator="type")]
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="share of the training images held out for tuning"
    )
    test_fraction: float | None = Field(
        None, gt=0, lt=0.5, description="for sources without a test set of their own"
    )


DatasetSpec = Annotated[TextDataset | ImageDataset, Field(discriminator="kind")]
