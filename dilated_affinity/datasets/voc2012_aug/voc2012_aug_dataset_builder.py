"""TFDS builder of PASCAL VOC 2012 with SBD's masks, from the official archives.

```
tfds build voc2012_aug --imports=dilated_affinity.datasets.voc2012_aug --file_format=array_record
```
"""

import inspect
import io
import os

import cv2
import numpy as np
import tensorflow_datasets as tfds

from dilated_affinity.datasets.classes import VOC2012, ClassTable
from dilated_affinity.datasets.files.images import decode_image
from dilated_affinity.datasets.files.pairs import Pair, check_sizes, classes_of_values, label_table
from dilated_affinity.datasets.records import RecordsSource, expected_splits, prepare
from dilated_affinity.datasets.splits import split_parts
from dilated_affinity.datasets.voc2012_aug.archives import SBD_ARCHIVE, VOC_ARCHIVE, VocArchives
from dilated_affinity.datasets.voc2012_aug.devkit import decode_mask

VOC_URL = f"http://host.robots.ox.ac.uk/pascal/VOC/voc2012/{VOC_ARCHIVE}"
SBD_URL = (
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    + SBD_ARCHIVE
)


class Builder(tfds.core.GeneratorBasedBuilder):
    """PASCAL VOC 2012 segmentation with the additional masks of SBD, from the official archives.

    Splits: train (1,464 images), val (1,449), trainval (2,913), and trainaug (10,582), the images
    labelled by SBD or VOC's train, without VOC's val. An image labelled by VOC has VOC's mask, with
    void contours; the others have SBD's mask, without.

    Example:

    ```python
    builder = Builder(data_dir="data/voc2012_aug")
    builder.download_and_prepare()
    builder.as_data_source("val")[0]["image"]
    ```

    Args:
        data_dir: The folder in which TFDS stores prepared data sets; this one is stored in
            `<data_dir>/voc2012_aug/<version>`. By default TFDS' own.
        file_format: TFDS' name of the file format. `as_data_source` and `source` need a format
            with random access.
        archive_dir: The folder of the archives from which `source` prepares the data set. By
            default TFDS' `manual_dir`, `<data_dir>/downloads/manual`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "VOC 2012 as of 11 May 2012, and the first release of SBD."}
    SPLIT_SIZES = {"train": 1464, "val": 1449, "trainval": 2913, "trainaug": 10582}
    HOMEPAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"{VOC_ARCHIVE} and {SBD_ARCHIVE} are used from here where they are; what is missing is "
        f"downloaded from {VOC_URL} and {SBD_URL}."
    )
    # Sizes and SHA-256 as in TFDS' own `voc` and torchvision's `sbd`. Given here, not in a file
    # checksums.tsv, so that no package data is needed.
    url_infos = {
        VOC_URL: tfds.download.checksums.UrlInfo(
            size=1_999_639_040,
            checksum="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
            filename=VOC_ARCHIVE,
        ),
        SBD_URL: tfds.download.checksums.UrlInfo(
            size=1_419_539_633,
            checksum="6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
            filename=SBD_ARCHIVE,
        ),
    }

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike | None = None,
        file_format: str = "array_record",
        archive_dir: str | os.PathLike | None = None,
        **kwargs,
    ):
        self._archive_dir = archive_dir
        root = None if data_dir is None else os.path.expanduser(data_dir)
        super().__init__(data_dir=root, file_format=file_format, **kwargs)

    @property
    def classes(self) -> ClassTable:
        """The classes of the data set."""
        return VOC2012

    def source(self, split: str) -> RecordsSource:
        """Returns random access to a split; prepares the data set first if it is missing.

        Args:
            split: The name of a split, or a part of one in TFDS' notation (`"train[:10]"`).

        Returns:
            See `dilated_affinity.datasets.registry.Source`.

        Raises:
            ConfigError: If there is no such split.
            DataError: If an archive or the data set in `data_dir` is damaged or incomplete.
        """
        config = tfds.download.DownloadConfig(manual_dir=self._archive_dir)
        builder = prepare(self, download_config=config)
        ids = builder.info.metadata["ids"]
        parts = split_parts(self.name, split, builder.info.splits)
        return RecordsSource(
            builder,
            split,
            self.classes,
            [example for name, start, stop in parts for example in ids[name][start:stop]],
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=inspect.getdoc(Builder).split("\n\nExample:")[0],
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "label": tfds.features.LabeledImage(
                        labels=list(VOC2012.names), shape=(None, None, 1), encoding_format="png"
                    ),
                    "id": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
            # Example i is the i-th id, so that ids are known without reading the records.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
            split_dict=expected_splits(self.SPLIT_SIZES),
        )

    def _split_generators(self, dl_manager):
        archives = VocArchives(
            _manual_or_downloaded(dl_manager, VOC_ARCHIVE, VOC_URL),
            _manual_or_downloaded(dl_manager, SBD_ARCHIVE, SBD_URL),
        )
        self.info.metadata["ids"] = {split: list(ids) for split, ids in archives.splits.items()}
        return {
            split: self._generate_examples(archives, ids) for split, ids in archives.splits.items()
        }

    def _generate_examples(self, archives: VocArchives, ids: tuple[str, ...]):
        table = label_table(VOC2012.num_classes)
        for index, example_id in enumerate(ids):
            image_data, image_name = archives.image(example_id)
            mask_data, mask_name = archives.mask(example_id)
            values = decode_mask(mask_data, mask_name)
            check_sizes(
                decode_image(image_data, image_name),
                values,
                Pair(example_id, image_name, mask_name),
                image_data,
            )
            label = classes_of_values(values, mask_name, VOC2012, table)
            yield (
                index,
                {
                    "image": io.BytesIO(image_data),
                    "label": _png(label),
                    "id": example_id,
                },
            )


def _manual_or_downloaded(dl_manager, archive: str, url: str) -> str:
    try:
        path = dl_manager.manual_dir / archive
    except AssertionError:
        # Raised by TFDS if there is no such folder, or nothing in it.
        path = None
    if path is None or not path.exists():
        path = dl_manager.download(url)
    return os.fspath(path)


def _png(label: np.ndarray) -> io.BytesIO:
    """Encodes a label map, several times faster than TFDS does."""
    return io.BytesIO(cv2.imencode(".png", np.ascontiguousarray(label))[1].tobytes())
