"""Rendered samples, the pack on disk and the indexed training stream."""

from __future__ import annotations

import csv
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from miniature import flat
from PIL import ExifTags, Image

from rddm_core.data.scenes import radius_field_from_depth, sample_aperture, sample_radius_field
from rddm_core.data.sources import (
    DepthPhoto,
    MaskedPhoto,
    PhotoPair,
    SharpPhoto,
    check_sizes,
    depth_photos,
    focal_stack_depths,
    masked_photos,
    photo_pairs,
    read_labels,
    read_mask,
    read_rgb,
    sharp_photos,
)
from rddm_core.data.stream import DecodedPhotos, MixtureConfig, Sources, TrainingStream, draw_sample
from rddm_core.data.synthetic import RADIUS_STEP, RenderConfig, RenderedPack, _sharp_crop, render_sample
from rddm_core.evaluation.maps import score_maps
from rddm_core.files import write_text
from rddm_core.images import ImageError
from rddm_core.optics import radius_from_map
from rddm_core.training.validate import validate_estimator


def write_manifest(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Path:
    """A miniature of the image collection, with random but structured pictures."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder in ("sharp", "segments", "pairs", "masks"):
        (root / folder).mkdir()

    def picture(path: Path, size: tuple[int, int]) -> None:
        coarse = rng.integers(0, 256, (size[1] // 6, size[0] // 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).save(path)

    names = [f"set_{i}.png" for i in range(4)]
    for name in names:
        picture(root / "sharp" / name, (120, 96))
    labels = np.zeros((96, 120), np.uint8)
    labels[:, 50:] = 1
    Image.fromarray(labels).save(root / "segments" / "0_seg.png")
    row = {"textured_tile_frac": 0.9, "sharp_tile_frac": 1.0}
    write_manifest(
        root / "sharp" / "manifest.csv",
        [{"file": n, **row, "split": "train" if i < 3 else "val"} for i, n in enumerate(names)],
    )
    for split in ("train", "dev"):
        for kind in ("blur", "sharp"):
            picture(root / "pairs" / f"{split}_{kind}.png", (90, 70))
    write_manifest(
        root / "pairs" / "manifest.csv",
        [{"blur": f"{s}_blur.png", "sharp": f"{s}_sharp.png", "split": s, "scene": s} for s in ("train", "dev")],
    )
    picture(root / "masks" / "a.png", (90, 80))
    Image.fromarray((rng.random((80, 90)) > 0.5).astype(np.uint8) * 255).save(root / "masks" / "m.png")
    write_manifest(root / "masks" / "manifest.csv", [{"image": "masks/a.png", "mask": "masks/m.png", "split": "train"}])
    return root


RENDER = RenderConfig(size=64, max_radius=6.0)
RAMP = np.tile(np.linspace(0, 255, 120).astype(np.uint8), (96, 1))
THIRDS = np.tile((np.arange(48) // 16).astype(np.uint8), (48, 1))
"""Labels of three objects side by side."""


@pytest.fixture(scope="module")
def sources(collection, tmp_path_factory) -> Sources:
    photos = sharp_photos(collection / "sharp", "train", collection / "segments")
    return Sources(
        pack=RenderedPack(tmp_path_factory.mktemp("pack"), photos, RENDER, 6),
        pairs=photo_pairs(collection / "pairs", "train"),
        sharp=photos,
        masked=masked_photos(collection / "masks", "train"),
    )


class TestSources:
    def test_splits_are_kept_apart(self, collection):
        assert {p.path.name for p in sharp_photos(collection / "sharp", "train")} == {
            "set_0.png",
            "set_1.png",
            "set_2.png",
        }
        assert [p.scene for p in photo_pairs(collection / "pairs", "dev")] == ["dev"]
        assert masked_photos(collection / "masks", "val") == []

    def test_segments_are_found_by_name(self, collection):
        photos = sharp_photos(collection / "sharp", "train", collection / "segments")
        assert [p.segments is not None for p in photos] == [True, False, False]

    def test_pictures_are_read_as_the_evaluation_reads_them(self, tmp_path):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        stored = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
        stored.save(tmp_path / "turned.png", exif=exif)
        upright = np.asarray(stored.transpose(Image.Transpose.ROTATE_270))
        assert np.array_equal(read_rgb(tmp_path / "turned.png"), upright)
        assert read_mask(tmp_path / "turned.png").shape == read_labels(tmp_path / "turned.png").shape == (3, 2)
        Image.fromarray(upright).save(tmp_path / "upright.png")
        stored.save(tmp_path / "turned.tif", exif=exif)
        check_sizes([(tmp_path / name, tmp_path / "upright.png") for name in ("turned.png", "turned.tif")])
        Image.fromarray(np.array([[0, 128, 129, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
        assert read_rgb(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 0, 1, 255]  # of 257: rounded
        assert read_mask(tmp_path / "deep.png").tolist() == [[0, 0, 1, 255]]

    @pytest.mark.parametrize("read", [read_rgb, read_mask, read_labels])
    def test_a_damaged_picture_is_named(self, tmp_path, read):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)).save(tmp_path / "half.png")
        content = (tmp_path / "half.png").read_bytes()
        (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
        with pytest.raises(ImageError, match=r"half\.png is .*damaged"):
            read(tmp_path / "half.png")

    @pytest.mark.parametrize("read", [read_rgb, read_mask, read_labels])
    def test_a_file_that_would_start_another_program_is_refused(self, tmp_path, read):
        (tmp_path / "mask.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
        with pytest.raises(ImageError, match=r"mask\.png is "):
            read(tmp_path / "mask.png")

    def test_a_palette_gives_the_brightness_of_masks_and_the_numbers_of_segments(self, tmp_path):
        picture = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
        picture.putpalette([0, 0, 0, 255, 255, 255, 0, 0, 0])
        picture.save(tmp_path / "p.png")
        assert read_mask(tmp_path / "p.png").tolist() == [[0, 255, 0]]
        assert read_labels(tmp_path / "p.png").tolist() == [[0, 1, 2]]
        Image.fromarray(np.array([[7, 200]], dtype=np.uint8)).save(tmp_path / "l.png")
        assert read_mask(tmp_path / "l.png").tolist() == read_labels(tmp_path / "l.png").tolist() == [[7, 200]]

    def test_masks_are_binary_whatever_their_palette(self, tmp_path, monkeypatch):
        """In training, in scores of maps and in validation."""
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "i.png")
        mask = Image.fromarray(np.ones((64, 64), dtype=np.uint8), "P")
        mask.putpalette([0, 0, 0, 255, 255, 255])
        mask.save(tmp_path / "m.png")
        photo = MaskedPhoto(tmp_path / "i.png", tmp_path / "m.png")
        mixture = MixtureConfig(crop=32, synthetic=0, real=0, identity=0, masks=1)
        sample = draw_sample(Sources(None, [], [], [photo]), mixture, 0)
        assert bool((sample["map"] == 1).all())
        assert score_maps([photo], {})["all white"].iou_blurred == 1
        monkeypatch.setattr("rddm_core.training.validate.estimate_defocus_map", lambda *_: torch.ones(1, 1, 64, 64))
        score, figures = validate_estimator(None, [photo], None)
        assert figures["iou_blurred"] == 1 and score == 0.5  # of a class that nobody knows nothing is found

    def test_a_missing_manifest_names_itself(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="manifest.csv does not exist"):
            photo_pairs(tmp_path, "train")

    def test_missing_columns_are_named(self, tmp_path):
        (tmp_path / "manifest.csv").write_text("blur\nx\n")
        with pytest.raises(ValueError, match="lacks the columns sharp, split"):
            photo_pairs(tmp_path, "train")

    def test_a_manifest_as_spreadsheets_save_it_is_read(self, tmp_path):
        (tmp_path / "manifest.csv").write_text("blur,sharp,split\nb.png,s.png,train\n", encoding="utf-8-sig")
        assert [pair.blurred.name for pair in photo_pairs(tmp_path, "train")] == ["b.png"]

    def test_a_row_that_ends_early_and_another_encoding_name_the_file(self, tmp_path):
        (tmp_path / "manifest.csv").write_text("blur,sharp,split\nb.png,s.png,train\nb.png\n")
        with pytest.raises(ValueError, match=r"manifest\.csv, line 3: nothing in the column sharp"):
            photo_pairs(tmp_path, "train")
        (tmp_path / "manifest.csv").write_text("blur,sharp,split\nblüte.png,s.png,train\n", encoding="latin-1")
        with pytest.raises(ValueError, match=r"manifest\.csv is no text in UTF-8"):
            photo_pairs(tmp_path, "train")


class TestScenes:
    @pytest.mark.parametrize("seed", range(30))
    def test_fields_stay_within_the_radius(self, seed):
        rng = np.random.default_rng(seed)
        field = sample_radius_field(rng, 48, 5.0, THIRDS if seed % 2 else None)
        assert field.shape == (48, 48) and bool(torch.isfinite(field).all())
        assert float(field.abs().max()) <= 5.0

    def test_scenes_and_lenses_vary(self):
        rng = np.random.default_rng(0)
        lenses = [sample_aperture(rng) for _ in range(60)]
        assert {a.blades >= 5 for a in lenses} == {True, False}
        assert any(a.vignette for a in lenses) and any(a.softness for a in lenses) and any(a.rim for a in lenses)
        strongest = [float(sample_radius_field(rng, 32, 12.0).abs().max()) for _ in range(80)]
        assert min(strongest) < 2 and max(strongest) > 7

    def test_objects_get_layers_of_their_own_in_most_scenes(self):
        differ = 0
        for seed in range(20):
            first, second = (
                sample_radius_field(np.random.default_rng(seed), 48, 5.0, labels) for labels in (THIRDS, THIRDS.T)
            )
            differ += not torch.equal(first, second)
        assert differ > 8

    def test_radii_grow_from_near_to_far(self):
        ramp = torch.linspace(0, 1, 32).expand(32, 32)
        for seed in range(5):
            field = radius_field_from_depth(np.random.default_rng(seed), ramp, 6.0)
            assert bool((field.diff(dim=1) >= 0).all()) and float(field[0, -1]) > float(field[0, 0])


class TestRendering:
    def test_a_sample_is_determined_by_seed_and_index(self, sources):
        photos = sources.sharp
        assert np.array_equal(render_sample(photos, RENDER, 3), render_sample(photos, RENDER, 3))
        assert not np.array_equal(render_sample(photos, RENDER, 3), render_sample(photos, RENDER, 4))
        assert not np.array_equal(render_sample(photos, RENDER, 3), render_sample(photos, replace(RENDER, seed=1), 3))

    def test_without_blur_both_pictures_agree_and_the_map_is_zero(self, sources):
        planes = render_sample(sources.sharp, replace(RENDER, sharp_share=1.0), 0)
        assert np.array_equal(planes[:3], planes[3:6]) and not planes[6].any()

    def test_blur_grows_with_the_stored_radius(self, sources):
        errors, radii = [], []
        for i in range(12):
            planes = render_sample(sources.sharp, replace(RENDER, sharp_share=0.0), i).astype(float)
            errors.append(np.abs(planes[:3] - planes[3:6]).mean())
            radii.append(planes[6].mean() * RADIUS_STEP)
        assert np.corrcoef(errors, radii)[0, 1] > 0.5

    def test_segments_are_cut_and_mirrored_with_their_photograph(self, tmp_path):
        labels = np.zeros((96, 120), np.uint8)
        labels[:, 60:] = 1
        Image.fromarray(labels).save(tmp_path / "l.png")
        Image.fromarray(labels * 250).save(tmp_path / "p.png")
        photo = SharpPhoto(tmp_path / "p.png", 1.0, tmp_path / "l.png")
        for seed in range(8):
            crop, cut = _sharp_crop([photo], 64, np.random.default_rng(seed))
            # Where it is reduced, the edge may lie a pixel beside that of the labels.
            assert cut is not None and ((crop[..., 0] > 125) == (cut == 1)).mean() > 0.95


class TestPack:
    def test_samples_are_rendered_once_and_read_back(self, sources, tmp_path, monkeypatch):
        pack = RenderedPack(tmp_path, sources.sharp, RENDER, 3)
        first = pack.sample(1).copy()
        monkeypatch.setattr("rddm_core.data.synthetic.render_sample", lambda *_: pytest.fail("rendered again"))
        assert np.array_equal(RenderedPack(tmp_path, sources.sharp, RENDER, 3).sample(4), first)

    def test_of_two_processes_that_begin_at_once_both_go_on_with_the_files_of_the_first(
        self, sources, tmp_path, monkeypatch
    ):
        create, others = np.lib.format.open_memmap, []

        def create_late(path, mode, **options):
            if mode == "w+" and not others:
                others.append(None)  # the other one comes in between, and is done before this file has its name
                others[0] = RenderedPack(tmp_path, sources.sharp, RENDER, 3)
                others[0].sample(0)
            return create(path, mode=mode, **options)

        monkeypatch.setattr(np.lib.format, "open_memmap", create_late)
        pack = RenderedPack(tmp_path, sources.sharp, RENDER, 3)
        assert pack.done[0] and np.array_equal(pack.samples[0], others[0].samples[0]) and pack.samples[0].any()
        others[0].sample(1)
        assert pack.done[1] and np.array_equal(pack.samples[1], others[0].samples[1])

    def test_a_process_that_begins_at_once_with_another_configuration_is_refused(self, sources, tmp_path, monkeypatch):
        def write_late(path, text, **options):
            monkeypatch.undo()
            RenderedPack(tmp_path, sources.sharp, RENDER, 3)
            write_text(path, text, **options)

        monkeypatch.setattr("rddm_core.data.synthetic.write_text", write_late)
        with pytest.raises(ValueError, match="another configuration"):
            RenderedPack(tmp_path, sources.sharp, replace(RENDER, seed=5), 3)
        RenderedPack(tmp_path, sources.sharp, RENDER, 3)

    def test_a_full_disk_is_told_before_a_store_would_kill(self, sources, tmp_path, monkeypatch):
        pack = RenderedPack(tmp_path, sources.sharp, RENDER, 3)
        pack.sample(0)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
        assert pack.sample(0).any()
        with pytest.raises(OSError, match=r"has 5 MB left.* smaller data\.pack_count"):
            pack.sample(1)
        assert not pack.done[1]

    def test_a_pickled_pack_shares_the_files(self, sources, tmp_path):
        """As loader workers get it that are not forked."""
        pack = RenderedPack(tmp_path, sources.sharp, RENDER, 3)
        pickled = pickle.dumps(pack)
        assert len(pickled) < pack.samples.nbytes / 4
        other = pickle.loads(pickled)
        other.sample(1)
        assert pack.done[1] and np.array_equal(pack.samples[1], other.samples[1]) and pack.samples[1].any()

    def test_another_configuration_is_refused(self, sources, tmp_path):
        RenderedPack(tmp_path, sources.sharp, RENDER, 3)
        with pytest.raises(ValueError, match="another configuration"):
            RenderedPack(tmp_path, sources.sharp, replace(RENDER, seed=5), 3)

    def test_other_photographs_of_the_same_name_are_refused(self, sources, tmp_path):
        """But not the same ones in another folder."""
        photo, moved, pack = sources.sharp[0], tmp_path / "moved", tmp_path / "pack"
        moved.mkdir()
        copied = replace(photo, path=Path(shutil.copy(photo.path, moved)))
        for first in (photo, copied):
            RenderedPack(pack, [first], RENDER, 3)
        changed = [replace(photo, texture=photo.texture / 2), replace(photo, segments=photo.path)]
        with copied.path.open("ab") as file:
            file.write(b"more")
        for other in (*changed, copied):
            with pytest.raises(ValueError, match="other photographs"):
                RenderedPack(pack, [other], RENDER, 3)

    def test_other_photographs_are_refused(self, sources, tmp_path):
        RenderedPack(tmp_path, sources.sharp, RENDER, 3)
        with pytest.raises(ValueError, match="another configuration"):
            RenderedPack(tmp_path, sources.sharp[:1], RENDER, 3)

    def test_samples_have_the_depths_of_the_pack(self, sources, tmp_path):
        Image.fromarray(RAMP).save(tmp_path / "depth.png")
        depths = [DepthPhoto(sources.sharp[0].path, tmp_path / "depth.png")]
        config = replace(RENDER, depth_share=1.0)
        pack = RenderedPack(tmp_path / "pack", sources.sharp, config, 2, depths)
        assert np.array_equal(pack.sample(1), render_sample(sources.sharp, config, 1, depths))


class TestStream:
    config = MixtureConfig(crop=48, synthetic=1, real=1, identity=1, masks=1)
    nothing = MixtureConfig(crop=48, synthetic=0, real=0, identity=0, noise=0, jpeg=0, rescale=0, tone=0, channels=0)
    """Of no source, and nothing is done to the pictures: tests set what they ask about."""

    def take(self, sources, batches: int, **options) -> list[dict[str, torch.Tensor]]:
        stream = iter(TrainingStream(sources, self.config, **options))
        return [next(stream) for _ in range(batches)]

    def test_shapes_and_ranges(self, sources):
        for batch in self.take(sources, 6, batch=4):
            assert batch["blurred"].shape == batch["sharp"].shape == (4, 3, 48, 48)
            assert batch["map"].shape == (4, 1, 48, 48) and batch["map_known"].shape == (4, 1)
            for key in ("blurred", "sharp", "map"):
                assert batch[key].dtype == torch.float32
                assert 0 <= float(batch[key].min()) and float(batch[key].max()) <= 1

    def test_a_resumed_stream_goes_on_where_it_stopped(self, sources):
        whole = self.take(sources, 4, batch=3)
        resumed = self.take(sources, 2, batch=3, start_step=2)
        for a, b in zip(whole[2:], resumed, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)

    def test_two_processes_share_the_samples_of_one(self, sources):
        single = self.take(sources, 2, batch=4)
        halves = [self.take(sources, 2, batch=2, process=r, processes=2) for r in range(2)]
        for step, batch in enumerate(single):
            for key in batch:
                assert torch.equal(batch[key], torch.cat([half[step][key] for half in halves]))

    def test_loader_workers_do_not_change_the_order(self, sources):
        loader = torch.utils.data.DataLoader(TrainingStream(sources, self.config, 2), batch_size=None, num_workers=2)
        indices = [batch["index"].tolist() for batch, _ in zip(loader, range(4), strict=False)]
        assert indices == [[0, 1], [2, 3], [4, 5], [6, 7]]

    def test_decoded_photographs_stay_within_their_memory(self, tmp_path, monkeypatch):
        paths = [tmp_path / f"{i}.png" for i in range(3)]
        for i, path in enumerate(paths):
            Image.new("RGB", (10, 8), (i, 0, 0)).save(path)
        photos, decoded = DecodedPhotos(limit=2 * 3 * 8 * 10), []
        monkeypatch.setattr("rddm_core.data.stream.read_rgb", lambda path: decoded.append(path.stem) or read_rgb(path))
        for i in (0, 1, 0, 2, 0, 1):
            assert photos[paths[i]].shape == (3, 8, 10) and photos[paths[i]][0, 0, 0] == i
            assert photos.size == sum(planes.nbytes for planes in photos.kept.values()) <= photos.limit
        assert decoded == ["0", "1", "2", "1"]
        assert DecodedPhotos(limit=1)[paths[2]][0, 0, 0] == 2

    def test_identity_samples_differ_by_the_sensor_alone(self, sources):
        config = replace(self.config, synthetic=0, real=0, masks=0, identity=1, noise=0, jpeg=0)
        sample = draw_sample(sources, config, 5)
        assert torch.equal(sample["blurred"], sample["sharp"]) and not sample["map"].any()

    def test_radii_grow_with_rendered_samples_that_are_enlarged(self, sources, monkeypatch):
        ramp = np.tile(np.arange(64, dtype=np.uint8) * 2 + 40, (64, 1))
        planes = np.stack([ramp] * 6 + [np.full_like(ramp, round(4 / RADIUS_STEP))])
        monkeypatch.setattr(sources.pack, "sample", lambda _: planes)
        config = MixtureConfig(crop=48, synthetic=1, real=0, identity=0, rescale=1.0, tone=0, noise=0, jpeg=0)
        factors = []
        for index in range(12):
            sample = draw_sample(sources, replace(config, enlarge=1.8), index)
            assert torch.equal(sample["blurred"], sample["sharp"])
            slope = max(float(sample["sharp"].diff(dim=d).mean().abs()) for d in (1, 2))
            (radius,) = radius_from_map(sample["map"]).unique().tolist()
            factors.append(radius / 4)
            assert slope * 255 * radius == pytest.approx(2 * 4, rel=0.03)
            assert float(radius_from_map(draw_sample(sources, config, index)["map"]).max()) == pytest.approx(4)
        assert 1 <= min(factors) < 1.3 and 1.5 < max(factors) <= 1.8

    @pytest.mark.parametrize("share", ["synthetic", "real"])
    def test_the_sharp_picture_is_the_target_of_the_blurred_one(self, sources, tmp_path, monkeypatch, share):
        planes = np.stack([np.full((64, 64), level, np.uint8) for level in (10, 10, 10, 200, 200, 200, 32)])
        monkeypatch.setattr(sources.pack, "sample", lambda _: planes)
        pair = PhotoPair(flat(tmp_path / "b.png", 10), flat(tmp_path / "s.png", 200), "x/1")
        sample = draw_sample(replace(sources, pairs=[pair]), replace(self.nothing, **{share: 1.0}), 3)
        assert [round(float(sample[key].mean() * 255)) for key in ("blurred", "sharp")] == [10, 200]

    @pytest.mark.parametrize("share", ["noise", "jpeg"])
    def test_the_sensor_changes_the_blurred_picture_alone(self, sources, share):
        config = replace(self.nothing, identity=1.0)
        untouched = draw_sample(sources, config, 5)["sharp"]
        sample = draw_sample(sources, replace(config, **{share: 1.0}), 5)
        # Turned by chance, which the draws before it shift.
        assert torch.equal(sample["sharp"].flatten().sort().values, untouched.flatten().sort().values)
        assert 0 < float((sample["blurred"] - sample["sharp"]).abs().mean()) < 0.1

    def test_maps_are_turned_with_their_pictures(self, sources, collection):
        mask = collection / "masks" / "m.png"
        looks_like_its_mask = replace(sources, masked=[MaskedPhoto(mask, mask)])
        for index in range(12):
            sample = draw_sample(looks_like_its_mask, replace(self.nothing, masks=1.0), index)
            assert torch.equal(sample["map"], sample["sharp"][:1])

    def test_another_seed_draws_other_samples(self, sources):
        config = replace(self.nothing, identity=1.0)
        first, second = (draw_sample(sources, replace(config, seed=seed), 3)["sharp"] for seed in (0, 1))
        assert not torch.equal(first, second)

    @pytest.mark.parametrize("share", ["synthetic", "identity", "masks"])
    def test_true_maps_are_known_as_often_as_asked(self, sources, share):
        for known in (0.0, 1.0):
            config = replace(self.nothing, known_map=known, **{share: 1.0})
            assert float(draw_sample(sources, config, 2)["map_known"]) == known

    def test_masks_are_binary_and_always_known_when_asked(self, sources):
        config = replace(self.config, synthetic=0, real=0, identity=0, masks=1, known_map=1.0)
        sample = draw_sample(sources, config, 2)
        assert set(sample["map"].unique().tolist()) <= {0.0, 1.0} and float(sample["map_known"]) == 1

    def test_small_collections_of_pairs_are_not_drowned(self, sources):
        pairs = [PhotoPair(Path("b"), Path("s"), f"big/{i}") for i in range(16)]
        pairs += [PhotoPair(Path("b"), Path("s"), "small/0")]
        shares = replace(sources, pairs=pairs).pair_shares
        assert shares.sum() == pytest.approx(1) and shares[-1] == pytest.approx(1 / 5)

    def test_pairs_are_drawn_by_their_shares(self, sources, tmp_path):
        black, white = flat(tmp_path / "black.png", 0), flat(tmp_path / "white.png", 255)
        pairs = [PhotoPair(black, black, f"big/{i}") for i in range(16)] + [PhotoPair(white, white, "small/0")]
        unequal, config = replace(sources, pairs=pairs), replace(self.nothing, real=1.0)
        whites = sum(float(draw_sample(unequal, config, index)["sharp"].mean()) for index in range(100))
        assert whites == pytest.approx(100 / 5, abs=8)

    def test_real_pairs_never_claim_a_true_map(self, sources):
        config = replace(self.config, synthetic=0, masks=0, identity=0, real=1, known_map=1.0)
        assert float(draw_sample(sources, config, 2)["map_known"]) == 0


def test_depths_of_focal_stacks_and_disparities_face_the_same_way(tmp_path):
    (tmp_path / "depth").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (96, 120, 3), dtype=np.uint8)).save(tmp_path / "depth" / "a.png")
    Image.fromarray(RAMP).save(tmp_path / "depth" / "far_right.png")
    Image.fromarray(255 - RAMP).save(tmp_path / "depth" / "near_left.png")
    kinds = {"far_right.png": "metric depth, mm", "near_left.png": "disparity (near=bright)", "none": "segments"}
    write_manifest(
        tmp_path / "depth" / "manifest.csv", [{"image": "a.png", "depth": d, "type": t} for d, t in kinds.items()]
    )
    metric, disparity = depth_photos(tmp_path / "depth")
    samples = []
    for photo in (metric, disparity):
        config = RenderConfig(size=64, max_radius=4.0, sharp_share=0.0, depth_share=1.0)
        samples.append(render_sample([], config, 7, [photo]))
    assert np.abs(samples[0].astype(int) - samples[1]).max() <= 1
    radius = samples[0][6] * RADIUS_STEP
    # The median filter of the depth bends the ramp in the last pixels; elsewhere |radius| is a V along it.
    assert np.abs(np.diff(radius, axis=0)).max() == 0 and radius.max() > 0


def test_a_stack_of_few_slices_is_no_depth(tmp_path):
    rows = [
        {"sharp": "a.jpg", "split": "train", "index_map": "a.png", "n_slices": 12},
        {"sharp": "a.jpg", "split": "train", "index_map": "a.png", "n_slices": 12},
        {"sharp": "b.jpg", "split": "train", "index_map": "b.png", "n_slices": 2},
        {"sharp": "c.jpg", "split": "dev", "index_map": "c.png", "n_slices": 12},
    ]
    write_manifest(tmp_path / "manifest.csv", rows)
    assert [photo.image.name for photo in focal_stack_depths(tmp_path, "train")] == ["a.jpg"]


def test_camera_sharpening_goes_over_both_pictures(collection):
    sources = Sources(pack=None, pairs=[], sharp=sharp_photos(collection / "sharp", "train"), masked=[])
    plain = MixtureConfig(crop=64, synthetic=0, real=0, identity=1, noise=0, jpeg=0)
    sharpened = replace(plain, sharpening=1.0)
    sample = draw_sample(sources, sharpened, 5)
    assert torch.equal(sample["blurred"], sample["sharp"])
    assert not torch.equal(sample["sharp"], draw_sample(sources, plain, 5)["sharp"])
