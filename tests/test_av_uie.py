"""AV-UIE on disk: what a row must hold, where it may lead, and what each task's sample looks like."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from crab_mini.av_uie.__main__ import main
from crab_mini.av_uie.check import check
from crab_mini.av_uie.draw import scale_box
from crab_mini.av_uie.rows import read_annotations, tasks_in
from crab_mini.av_uie.samples import decode, media_files
from crab_mini.errors import DataError
from crab_mini.tasks.base import TASKS

from . import small_av_uie as small


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A good folder; never changed."""
    return small.build(tmp_path_factory.mktemp("av_uie") / "good")


@pytest.fixture
def root(whole, tmp_path) -> Path:
    """A copy of the good folder, to be damaged."""
    return small.copy(whole, tmp_path / "data")


def change(root: Path, task: str, **fields) -> None:
    """Sets fields of the task's first training sample; None deletes one."""
    path = root / task / "train.json"
    rows = json.loads(path.read_text())
    rows[0] = {key: value for key, value in (rows[0] | fields).items() if value is not ...}
    path.write_text(json.dumps(rows))


def first(root: Path, task: str):
    return read_annotations(root, "train", [task])[0]


def test_all_nine_tasks_are_read_and_decoded(whole):
    rows = read_annotations(whole, "test")
    assert [row.task for row in rows] == list(TASKS) and rows[0].uid == "ave/test/0"
    shapes = {"arig": 1, "s4": 1, "ms3": 5}
    for row in rows:
        sample = decode(row, 16)
        count = shapes.get(row.task, 10)
        assert sample.frames.shape == (count, 3, 16, 16) and sample.frames.dtype == torch.uint8
        assert sample.sounds.shape == (count, 16000) and sample.sounds.dtype == torch.float32
        assert len(sample.seconds) == count and sample.fields == row.fields and sample.uid == row.uid
        assert (sample.masks is not None) == (row.task in ("s4", "ms3", "avss", "ref_avs"))
        assert all(path.is_file() for path in media_files(row))


def test_frames_and_sound_belong_to_their_seconds(root):
    """Second s has the grey value 20 s and the tone (s + 1) · 200 Hz."""
    wave = np.concatenate([0.3 * np.sin(2 * np.pi * 200 * (s + 1) * np.arange(16000) / 16000) for s in range(10)])
    for task in TASKS:
        for path in list((root / task).rglob("*.wav")) + list((root / task).rglob("*.flac")):
            soundfile.write(path, wave, 16000)
        sample = decode(first(root, task), 16)
        pitch = torch.fft.rfft(sample.sounds).abs().argmax(1)
        if task != "ref_avs":                                       # its sound is an ogg, checked elsewhere
            assert pitch.tolist() == [200 * (s + 1) for s in sample.seconds], task
        if task != "arig":
            right = sample.frames[:, 0, 8, 15].float()
            assert torch.allclose(right, 20.0 * torch.tensor(sample.seconds), atol=6), task
    assert decode(first(root, "arig"), 16).seconds == [1]
    for task, target in (("s4", 0), ("ms3", 3), ("avss", 3), ("ref_avs", 7)):
        assert decode(first(root, task), 16).target == target


def test_masks_classes_and_boxes(whole):
    for task in ("s4", "ms3", "ref_avs"):
        sample = decode(first(whole, task), 16)
        assert sample.masks.shape == (1, 16, 16) and sample.masks.dtype == torch.bool
        assert sample.masks[0, :8, :8].all() and sample.masks.sum() == 64
    sample = decode(first(whole, "avss"), 16)
    classes = sample.class_map
    assert torch.equal(sample.masks, torch.stack([classes == 7, classes == 22]))
    assert classes.shape == (16, 16) and (classes[:8, :8] == 7).all() and (classes[8:, 8:] == 22).all()
    sample = decode(first(whole, "arig"), 16)
    assert sample.box == (10, 20, 110, 220) and scale_box(sample.box, 112) == (5, 10, 55, 110)


def test_the_box_may_stand_in_the_label_only(root):
    change(root, "arig", top_left=..., bottom_right=..., label_content="At (1,2): from (30, 40) to (50, 60).")
    assert decode(first(root, "arig"), 16).box == (30, 40, 50, 60)


def test_visible_objects_are_read_where_they_are_there(root):
    assert decode(first(root, "s4"), 16).visible is None
    small.classes(root / "s4/AVS/v1s/u/visible/3.png")
    assert (decode(first(root, "s4"), 16).visible[8:, 8:] == 22).all()


def test_sibling_frames_may_be_absent(root):
    for second in (0, 1, 4):
        (root / f"ms3/AVS/v1m/u/frames/{second}.jpg").unlink()
    sample = decode(first(root, "ms3"), 16)
    assert sample.seconds == [2, 3] and sample.target == 1 and sample.sounds.shape == (2, 16000)


def test_clips_shorter_and_longer_than_ten_seconds(root):
    small.strip(root / "avcap/video/a.png", 4)
    assert decode(first(root, "avcap"), 16).seconds == [0, 1, 2, 3]
    small.strip(root / "avcap/video/a.png", 13)
    small.tone(root / "avcap/audio/a.wav", 13)
    assert decode(first(root, "avcap"), 16).seconds == list(range(10))
    small.tone(root / "avcap/audio/a.wav", 9.6)                     # rounds to ten, the rest is silence
    sample = decode(first(root, "avcap"), 16)
    assert sample.sounds.shape == (10, 16000) and (sample.sounds[9, 9600:] == 0).all() and sample.sounds[9, 9500:].any()


def test_a_sound_that_ends_long_before_its_video(root):
    small.tone(root / "avcap/audio/a.wav", 3)
    with pytest.raises(DataError, match="a.wav: audio_path: too short: 3.0 s of sound, 10.0 s of video"):
        decode(first(root, "avcap"), 16)
    small.tone(root / "ms3/AVS/v1m/u/audio.wav", 3)
    with pytest.raises(DataError, match="audio_path: too short: 3.0 s, the frame is of second 3"):
        decode(first(root, "ms3"), 16)


def test_a_minute_is_ten_pieces_of_two_seconds(root):
    wave = np.concatenate([np.full(16000, (s + 1) / 100) for s in range(60)])
    soundfile.write(root / "avqa/audio/a.wav", wave, 16000)
    small.strip(root / "avqa/video/a.png", 60)
    sample = decode(first(root, "avqa"), 16)
    assert sample.seconds == list(range(0, 60, 6)) and sample.sounds.shape == (10, 32000)
    middle = 100 * sample.sounds[:, 8000:24000].mean(1)              # second s itself; half a second on either side
    assert torch.allclose(middle, torch.arange(0, 60, 6) + 1.0, atol=0.01)
    assert (sample.sounds[0, :8000] == 0).all() and (100 * sample.sounds[1, :8000] - 6).abs().max() < 0.01


def test_mp4_with_its_own_soundtrack_and_a_folder_of_frames(root):
    pytest.importorskip("av")
    small.video(root / "ave/video/b.mp4", 8, rate=5)
    for field in (None, "", ...):
        change(root, "ave", video_path="b.mp4", audio_path=field)
        sample = decode(first(root, "ave"), 16)
        assert sample.seconds == list(range(8)) and sample.sounds.abs().amax(1).min() > 0.1
        assert torch.allclose(sample.frames.float().mean((1, 2, 3)), 20 + 20 * torch.arange(8.0), atol=8)
    (root / "ave/video/b.mp4").unlink()
    for second in range(10):
        small.picture(root / f"ave/video/b/{second}.png", 20 * second)
    change(root, "ave", video_path="b.mp4", audio_path="a.wav")     # the folder stands in for the file
    assert decode(first(root, "ave"), 16).frames[:, 0, 8, 15].tolist() == list(range(0, 200, 20))


def test_a_data_set_without_an_audio_folder_uses_the_soundtracks(root):
    pytest.importorskip("av")
    small.video(root / "ave/video/b.mp4", 8)
    change(root, "ave", video_path="b.mp4", audio_path="b.mp3")
    with pytest.raises(DataError, match="b.mp3: audio_path: missing"):
        decode(first(root, "ave"), 16)
    for path in (root / "ave/audio").iterdir():
        path.unlink()
    (root / "ave/audio").rmdir()
    assert decode(first(root, "ave"), 16).sounds.shape == (8, 16000)


WRONG = {       # name: (task, changed fields, what the line must say)
    "absolute path": ("ave", {"video_path": "/etc/passwd"}, "video_path: absolute"),
    "drive": ("ave", {"audio_path": "C:/a.wav"}, "audio_path: absolute"),
    "parent": ("s4", {"image_path": "AVS/../../x/frames/3.jpg"}, "image_path: '..'"),
    "backslash": ("avqa", {"video_path": "..\\a.png"}, "video_path: absolute or foreign"),
    "zero byte": ("avqa", {"video_path": "a\0.png"}, "video_path"),
    "long name": ("avqa", {"video_path": "a" * 5000}, "video_path: no usable path"),
    "missing key": ("ave", {"event": ...}, "event: missing key"),
    "wrong type": ("ave", {"start_time": "2"}, "start_time: expected a whole number"),
    "truth value": ("ave", {"start_time": True}, "start_time: expected a whole number"),
    "number for text": ("avcap", {"label_content": 3}, "label_content: expected non-empty text"),
    "blank": ("avqa", {"question": "  "}, "question: expected non-empty text"),
    "half a character": ("avqa", {"question": "\ud800"}, "question: expected non-empty text"),
    "time": ("ave", {"start_time": 6}, "end_time: 6 is not after"),
    "late": ("ave", {"end_time": 11}, "end_time: expected a whole number from 0 to 10"),
    "range": ("ave", {"start_time": 1}, "label_content: mislabelled: the range 2,6 is not 1,6"),
    "tags": ("avvp", {"label_content": "<visual_event>Dog,(1 2)"}, "label_content: mislabelled: <visual_event>"),
    "spans": ("avvp", {"label_content": "<audio_event>Dog,(4 2)</audio_event>"}, "label_content: mislabelled"),
    "no events": ("avvp", {"label_content": "A dog."}, "label_content: mislabelled: no <visual_event>"),
    "question type": ("avqa", {"type": "[\"Audio"}, "type: expected a JSON list"),
    "box outside": ("arig", {"bottom_right": [300, 10]}, "top_left: box"),
    "box turned": ("arig", {"top_left": [120, 20]}, "top_left: box"),
    "half a box": ("arig", {"top_left": ...}, "top_left: no box"),
    "frame": ("s4", {"frame_idx": 2}, "frame_idx: says frame 2, but image_path names frame 3"),
    "no frame": ("ms3", {"image_path": "AVS/v1m/u/audio.wav"}, "image_path: 'AVS/v1m/u/audio.wav': expected"),
    "fid": ("ref_avs", {"fid": "../../x"}, "fid: expected a whole number"),
    "absent video": ("avcap", {"video_path": "b.mp4"}, "video_path: missing"),
    "absent image": ("arig", {"image_path": "media/b/frames/9.jpg"}, "image_path: missing"),
    "absent mask": ("ref_avs", {"fid": 2}, "mask: missing"),
    "extension": ("avcap", {"video_path": "a.mkv"}, "video_path: "),
    "too short": ("ave", {"end_time": 10, "label_content": "x", "video_path": "short.png"}, "too short"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line_and_loading_stops(root, name, capsys):
    task, fields, line = WRONG[name]
    small.strip(root / "ave/video/short.png", 8)
    (root / "avcap/video/a.mkv").write_bytes(b"no video")
    change(root, task, **fields)
    with pytest.raises(DataError) as caught:
        decode(first(root, task), 16)
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert main(["check", str(root)]) == 1
    assert line in capsys.readouterr().out


def test_links_out_of_the_folder_are_refused(root, tmp_path):
    outside = small.strip(tmp_path / "outside.png")
    (root / "ave/video/out.png").symlink_to(outside)
    (root / "ave/video/in.png").symlink_to(root / "ave/video/a.png")
    change(root, "ave", video_path="in.png")
    assert decode(first(root, "ave"), 16).frames.shape[0] == 10
    change(root, "ave", video_path="out.png")
    with pytest.raises(DataError, match=r"video_path: 'out.png' leads outside the data folder"):
        first(root, "ave")
    small.picture(tmp_path / "frames" / "0.jpg")                    # a sibling frame, a mask, a frame of a folder
    (root / "ms3/AVS/v1m/u/frames/0.jpg").unlink()
    (root / "ms3/AVS/v1m/u/frames/0.jpg").symlink_to(tmp_path / "frames" / "0.jpg")
    (root / "s4/AVS/v1s/u/labels_semantic/3.png").unlink()
    (root / "s4/AVS/v1s/u/labels_semantic/3.png").symlink_to(outside)
    (root / "avcap/video/dir").mkdir()
    (root / "avcap/video/dir/0.png").symlink_to(outside)
    change(root, "avcap", video_path="dir")
    for task in ("ms3", "s4", "avcap"):
        with pytest.raises(DataError, match="leads outside the data folder"):
            decode(first(root, task), 16)
    (root / "avqa/video/dir").mkdir()
    (root / "avqa/video/dir/0.png").symlink_to("0.png")             # to itself
    change(root, "avqa", video_path="dir")
    with pytest.raises(DataError, match="0.png: video_path: no usable path"):
        decode(first(root, "avqa"), 16)
    said = {Path(error.file).name for _, _, error in check(root, progress=False).problems}
    assert said == {"train.json[0]", "test.json[0]", "0.jpg", "0.png"}
    (root / "arig/train.json").unlink()
    (tmp_path / "outside.json").write_text("[]")
    (root / "arig/train.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(DataError, match="leads outside the data folder"):
        first(root, "arig")
    (root / "loop").symlink_to(root / "loop")
    change(root, "ave", video_path="../../loop")
    with pytest.raises(DataError, match=r"'\.\.' in"):
        first(root, "ave")


def test_a_pipe_does_not_hang(root):
    os.mkfifo(root / "avcap/video/pipe.png")
    change(root, "avcap", video_path="pipe.png")
    with pytest.raises(DataError, match="not a regular file"):
        decode(first(root, "avcap"), 16)


def test_damaged_json(root):
    path = root / "ave/train.json"
    good = path.read_bytes()
    for data, line in ((good[:-9], "no valid JSON"), (b"", "no valid JSON"),
                       (good.replace(b"Bell", b"\xff\xfe"), "not UTF-8"),
                       (b"{}", "expected a list of samples, found dict"), (b"[]", "empty: no samples"),
                       (b"[" * 100000, "no valid JSON"), (b"[3]", "expected an object, found int")):
        path.write_bytes(data)
        with pytest.raises(DataError, match=line):
            first(root, "ave")
    path.write_bytes(b"\xef\xbb\xbf" + good)                        # a byte order mark does no harm
    assert first(root, "ave").fields["event"] == "Bell"


@pytest.mark.parametrize("task", TASKS)
def test_duplicate_ids(root, task):
    path = root / task / "train.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps(rows * 2))
    problems = []
    assert [row.index for row in read_annotations(root, "train", [task], problems)] == [0]
    assert len(problems) == 1 and "duplicate of sample 0" in str(problems[0]) and "[1]" in problems[0].file


def test_tasks_that_are_there_and_that_are_not(root):
    small.shutil.rmtree(root / "avss")
    there, lacking = tasks_in(root, "train")
    assert lacking == ["avss"] and len(there) == 8
    assert tasks_in(root, "train", ["avss", "ave"]) == (["ave"], ["avss"])
    with pytest.raises(DataError, match="unknown task 'avs'"):
        tasks_in(root, "train", ["avs"])
    with pytest.raises(DataError, match="no train.json in any of the task folders avss"):
        read_annotations(root, "train", ["avss"])
    with pytest.raises(DataError, match="missing"):
        read_annotations(root / "nowhere", "train")


def test_check_names_every_broken_file_of_a_sample(root, capsys):
    (root / "s4/AVS/v1s/u/frames/3.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (root / "s4/AVS/v1s/u/labels_semantic/3.png").unlink()
    soundfile.write(root / "s4/AVS/v1s/u/audio.wav", np.zeros(80000), 16000)
    report = check(root, progress=False)
    found = sorted((Path(error.file).name, error.field) for _, _, error in report.problems)
    assert found == [("3.jpg", "image_path"), ("3.png", "mask"), ("audio.wav", "audio_path")]
    assert report.samples["s4"]["train"] == (0, 1) and report.samples["ave"]["train"] == (1, 1)
    assert main(["check", str(root), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["tasks"]["s4"]["test"] == {"complete": 0, "samples": 1}
    assert {"task", "split", "file", "field", "reason"} == set(printed["problems"][0])


def test_check_of_a_good_folder(whole, capsys):
    assert main(["check", str(whole)]) == 0
    out = capsys.readouterr().out
    assert out.count("1 of       1 samples complete") == 18 and "no problems" in out
    command = [sys.executable, "-m", "crab_mini.av_uie", "check", str(whole / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 1 and "missing, or without any AV-UIE task folder" in done.stdout


def test_events_of_a_label(whole):
    fields = {task: first(whole, task).fields for task in ("ave", "avvp")}
    assert TASKS["ave"].events(fields["ave"]) == [("Bell", 2, 6)]
    assert TASKS["avvp"].events(fields["avvp"]) == [("see Bell", 0, 1), ("see Bell", 3, 6), ("hear Dog", 2, 4)]


def test_mask_of_another_size_than_its_image(root):
    small.mask(root / "s4/AVS/v1s/u/labels_semantic/3.png", (20, 24))
    with pytest.raises(DataError, match="mask of 20x24, its image has 24x24"):
        decode(first(root, "s4"), 16)
    Image.new("RGB", (24, 24), (9, 9, 9)).save(root / "avss/AVS/v2/u/labels_rgb/3.png")
    with pytest.raises(DataError, match="not in AVSBench's palette"):
        decode(first(root, "avss"), 16)
