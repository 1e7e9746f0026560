"""Pictures, masks, sounds and videos: any form in, exact tensors out, one line for what cannot be used."""

import math
import struct
import sys

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from crab_mini.av_uie import media, video
from crab_mini.av_uie.media import read_audio, read_classes, read_image, read_mask
from crab_mini.av_uie.resample import resample
from crab_mini.errors import DataError

from . import small_av_uie as small


def decibel(wave: torch.Tensor) -> float:
    """Level of a sine, 0 for amplitude 1; the ends, where the filter sees silence, are left out."""
    middle = wave[len(wave) // 8:-len(wave) // 8]
    return 20 * math.log10(middle.pow(2).mean().sqrt().item() * math.sqrt(2) + 1e-12)


def sine(hertz: float, rate: int, seconds: float = 0.5) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(rate * seconds), dtype=torch.float64) / rate).float()


@pytest.mark.parametrize("rate", [44100, 48000, 32000, 22050, 96000])
def test_tone_sweep_folds_back_60_db_down(rate):
    for hertz in np.linspace(8000, rate / 2 - 50, 40):
        assert decibel(resample(sine(hertz, rate), rate)) < -60, f"{hertz:.0f} Hz folds back"
    for hertz in np.linspace(100, 7200, 20):
        assert abs(decibel(resample(sine(hertz, rate), rate))) < 0.01, f"{hertz:.0f} Hz is not passed on"


@pytest.mark.parametrize("rate", [8000, 11025, 12000])
def test_raising_the_rate_adds_no_mirror_image(rate):
    for hertz in np.linspace(100, rate * 0.45, 12):
        wave = resample(sine(hertz, rate, 1.0), rate)[4000:12000]
        spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
        away = (torch.arange(len(spectrum)) * 2 - hertz).abs() > 60
        assert 20 * math.log10((spectrum[away].max() / spectrum.max()).item()) < -60


@pytest.mark.parametrize("rate", [44100, 48000, 8000, 44099, 7919])
def test_resampling_keeps_time_and_phase(rate):
    wave = resample(sine(300, rate, 0.4), rate)
    assert len(wave) == math.ceil(int(rate * 0.4) * 16000 / rate)
    inner = slice(800, len(wave) - 800)
    assert torch.allclose(wave[inner], sine(300, 16000, 0.5)[:len(wave)][inner], atol=2e-3)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_sounds_of_any_format_rate_and_channels(tmp_path, name):
    wave = read_audio(small.tone(tmp_path / name, 1.0, rate=44100, channels=2))
    assert wave.dtype == torch.float32 and abs(len(wave) - 16000) < 10
    spectrum = torch.fft.rfft(wave[:16000]).abs()
    assert abs(int(spectrum.argmax()) - 440) <= 1 and decibel(wave) == pytest.approx(20 * math.log10(0.3), abs=0.5)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_pictures_of_any_mode(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((10, 14), 255 * 257, np.uint16)).save(path)
    else:
        Image.new("RGB", (14, 10), "white").convert(mode).save(path)
    image = read_image(path, 8)
    assert image.shape == (3, 8, 8) and image.dtype == torch.uint8 and image.min() >= 250


def test_transparency_is_white_and_sixteen_bits_are_scaled(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png", 8) == 255).all()
    Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "deep.png", 8) == 100).all()


def test_exif_rotation_is_undone(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 8:] = 255                                 # the right half is white
    exif = Image.Exif()
    exif[0x0112] = 6                                    # to be turned by 90 degrees clockwise for display
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = read_image(tmp_path / "a.jpg", 16)
    assert upright[:, :6].float().mean() < 10 and upright[:, 10:].float().mean() > 245      # white below


def test_mask_is_whatever_is_above_zero(tmp_path):
    truth = np.zeros((12, 12), bool)
    truth[2:7, 3:9] = True
    palette = Image.fromarray(truth.astype(np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 1, 0, 0])              # a nearly black label colour still is one
    forms = {"binary": Image.fromarray(truth), "one": Image.fromarray(truth.astype(np.uint8)),
             "grey": Image.fromarray(truth.astype(np.uint8) * 255), "palette": palette,
             "opaque": Image.fromarray(truth.astype(np.uint8)).convert("LA"),
             "deep": Image.fromarray(truth.astype(np.uint16)),
             "colour": Image.fromarray(np.stack([truth * 0, truth * 64, truth * 0], -1).astype(np.uint8))}
    for name, image in forms.items():
        image.save(tmp_path / f"{name}.png")
        assert (read_mask(tmp_path / f"{name}.png", 12).numpy() == truth).all(), name


def test_nearest_neighbour_takes_what_lies_under_the_centre():
    array = np.arange(36).reshape(6, 6)
    assert (media.resize_nearest(array, 2).numpy() == [[7, 10], [25, 28]]).all()
    assert (media.resize_nearest(array, 12).numpy() == np.kron(array, np.ones((2, 2), int))).all()


def test_avsbench_palette(tmp_path):
    assert len(media.AVSBENCH_CLASSES) == 71 and media.AVSBENCH_CLASSES[45] == "mower"
    colours = media.palette()
    assert len({tuple(colour) for colour in colours}) == 71
    assert colours[1].tolist() == [128, 0, 0] and colours[2].tolist() == [0, 128, 0]
    assert colours[7].tolist() == [128, 128, 128] and colours[8].tolist() == [64, 0, 0]
    assert colours[70].tolist() == [32, 128, 128]       # 70 = 001 000 110 in triples of bits
    classes = np.random.default_rng(0).integers(0, 71, (9, 9))
    for name, image in (("palette", media.encode_classes(classes)), ("grey", Image.fromarray(classes.astype(np.uint8))),
                        ("colour", media.encode_classes(classes).convert("RGB"))):
        image.save(tmp_path / f"{name}.png")
        assert (read_classes(tmp_path / f"{name}.png", 9).numpy() == classes).all(), name


def test_labels_outside_the_palette_and_of_another_size(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "colour.png")
    Image.new("L", (4, 4), 71).save(tmp_path / "grey.png")
    with pytest.raises(DataError, match=r"colour.png: mask: colour \(1, 2, 3\) at \(0, 0\) is not in AVSBench"):
        read_classes(tmp_path / "colour.png", 4)
    with pytest.raises(DataError, match="class 71 outside"):
        read_classes(tmp_path / "grey.png", 4)
    with pytest.raises(DataError, match="mask of 4x4, its image has 5x4"):
        read_mask(tmp_path / "grey.png", 4, image_size=(5, 4))


def test_picture_bomb_is_refused_before_it_is_unpacked(tmp_path):
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    Image.new("1", (10000, 9500)).save(tmp_path / "large.png")     # where PIL itself would only warn
    Image.new("1", (8200, 8000)).save(tmp_path / "big.png")         # and where PIL would say nothing
    for name in ("bomb.png", "large.png", "big.png"):
        with pytest.raises(DataError, match=f"{name}: image: too large"):
            read_image(tmp_path / name, 8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.wav", "a.flac", "a.ogg", "a.mp3", "a.mp4", "a.avi",
                                  "a.webm"])
def test_a_file_that_lost_its_end_is_named(tmp_path, name):
    path = tmp_path / name
    if path.suffix in video.PICTURES:
        def read():
            return read_image(path, 8)
        small.picture(path, size=(40, 40))
    elif path.suffix in video.VIDEOS:
        pytest.importorskip("av")

        def read():
            return video.open_clip(path).frames([0], 8)
        small.video(path, 2, codec="libvpx" if name == "a.webm" else "mpeg4", sound=False)
    else:
        def read():
            return read_audio(path)
        soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 40000), 16000)    # an ogg of several pages
    read()
    whole = path.read_bytes()
    page = max(whole.rfind(b"OggS"), 0)                 # a cut between two pages of an ogg
    for length in (0, 3, page, len(whole) // 2, len(whole) - 5, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=name):
            read()


def test_silent_empty_and_wrong_sounds(tmp_path):
    small.tone(tmp_path / "good.wav", 0.1)
    soundfile.write(tmp_path / "silent.wav", np.zeros(800), 16000)
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan), 16000, subtype="FLOAT")
    (tmp_path / "mp3.mp3").write_bytes((tmp_path / "good.wav").read_bytes())
    (tmp_path / "a.txt").write_text("no sound")
    for name, reason in (("silent.wav", "silent audio"), ("nothing.wav", "zero-length"), ("nan.wav", "NaN"),
                         ("mp3.mp3", "named .mp3 but holds WAV"), ("a.txt", "wrong extension '.txt'"),
                         ("absent.wav", "missing"), (".", "not a regular file")):
        with pytest.raises(DataError, match=reason) as caught:
            read_audio(tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name, codec", [("a.mp4", "mpeg4"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")])
def test_video_frames_by_second(tmp_path, name, codec):
    pytest.importorskip("av")
    clip = video.open_clip(small.video(tmp_path / name, 8, codec=codec))
    assert clip.seconds == pytest.approx(8, abs=0.3)
    for seconds in ([0, 1, 2, 3, 4, 5, 6, 7], [5], [0, 7], [2, 6]):
        frames = clip.frames(seconds, 16)
        assert frames.shape == (len(seconds), 3, 16, 16)
        grey = frames.float().mean((1, 2, 3))
        assert torch.allclose(grey, 20 + 20 * torch.tensor(seconds).float(), atol=8), (seconds, grey)
    with pytest.raises(DataError, match="too short: no frame at second 12"):
        clip.frames([12], 16)
    sound = clip.soundtrack()
    assert abs(len(sound) - 8 * 16000) < 2000 and abs(int(torch.fft.rfft(sound[8000:24000]).abs().argmax()) - 440) <= 1


def test_video_is_sought_not_decoded_from_the_start(tmp_path):
    av = pytest.importorskip("av")
    path = small.video(tmp_path / "a.mp4", 12, rate=10, sound=False, key_frames=10)
    with av.open(str(path)) as container:
        stream, decoded = container.streams.video[0], []

        class Counting:
            """The container, with its decoded frames counted."""
            seek = container.seek

            def decode(self, stream):
                for frame in container.decode(stream):
                    decoded.append(frame)
                    yield frame
        shown = video.frames_at([0.5, 6.5, 11.5], Counting(), stream)
    assert [round(float(frame.time), 1) for frame in shown] == [0.5, 6.5, 11.5] and len(decoded) < 40    # of 120


def test_video_without_sound_and_without_pyav(tmp_path, monkeypatch):
    pytest.importorskip("av")
    path = small.video(tmp_path / "a.mp4", 1, sound=False)
    with pytest.raises(DataError, match="no soundtrack"):
        video.open_clip(path).soundtrack()
    monkeypatch.setitem(sys.modules, "av", None)        # as if it were not installed
    with pytest.raises(DataError, match=r'a.mp4: video: reading video files needs PyAV: pip install -e "\.\[video\]"'):
        video.open_clip(path)


def test_folders_and_strips(tmp_path):
    for second in range(11):
        small.picture(tmp_path / "frames" / f"{second}.png", 10 * second)
    folder = video.open_clip(tmp_path / "frames")
    assert folder.seconds == 11
    right = folder.frames([2, 10], 24)[:, 0, 0, -1]     # frame 10 comes after frame 9, not after frame 1
    assert right.tolist() == [20, 100]
    strip = video.open_clip(small.strip(tmp_path / "strip.png"))
    assert strip.seconds == 10 and strip.frames([0, 9], 24)[:, 0, 0, 0].tolist() == [0, 180]
    with pytest.raises(DataError, match="no film strip: 24x36"):
        video.open_clip(small.picture(tmp_path / "odd.png", size=(24, 36)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="folder without frames"):
        video.open_clip(tmp_path / "empty")


def test_pieces_of_sound_line_up():
    wave = torch.arange(48000).float()
    two = media.pieces(wave, [-0.5, 1.5, 2.5], 2.0)
    assert two.shape == (3, 32000) and two[0, 8000] == 0 and two[0, 8001] == 1
    assert two[1, 0] == 24000 and two[2, 7999] == 47999 and (two[2, 8000:] == 0).all()


def test_a_phone_held_upright(tmp_path):
    """A header that says `turn by 90 degrees clockwise` (the matrix of a phone's portrait video) is obeyed."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        pixels = np.zeros((32, 48, 3), np.uint8)
        pixels[:, 24:] = 255                            # the right half is white
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.find(b"tkhd") + 44                    # kind, flags, five words, 16 bytes
    data[matrix:matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 32 * 65536, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    frame = video.open_clip(tmp_path / "a.mp4").frames([0], 16)[0]
    assert frame[:, :6].float().mean() < 10 and frame[:, 10:].float().mean() > 245      # white below
