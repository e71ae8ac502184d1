import io
import json
import re
import tarfile
from pathlib import Path

import numpy
import pytest

from deploy.bootstrap import check, install, llama
from deploy.bootstrap.minilm_gguf import NotConvertible, convert, read_safetensors, tensor_name, vocabulary
from deploy.bootstrap.places import Places, llama_requirement
from deploy.bootstrap.steps import Stamps, StepFailed, Steps

ROOT = Path(__file__).resolve().parents[2]


def safetensors(path: Path, tensors: dict[str, numpy.ndarray]) -> Path:
    """A file in the format of the safetensors README; float16 arrays are F16, the rest F32."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = array.tobytes()
        kind = "F16" if array.dtype == numpy.float16 else "F32"
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_safetensors_are_read_by_hand(tmp_path: Path) -> None:
    made = {"a": numpy.arange(6, dtype=numpy.float32).reshape(2, 3), "b": numpy.array([1.5, -2], numpy.float16)}
    read = dict(read_safetensors(safetensors(tmp_path / "x", made)))
    assert read.keys() == made.keys()
    for name, array in made.items():
        assert numpy.array_equal(read[name], array)


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    halves = numpy.array([1.0, -2.5], numpy.float32).view(numpy.uint32) >> 16
    path = tmp_path / "x"
    path.write_bytes(len(header).to_bytes(8, "little") + header + halves.astype("<u2").tobytes())
    assert dict(read_safetensors(path))["a"].tolist() == [1.0, -2.5]


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, (10).to_bytes(8, "little") + b"not json.." + b"x" * 20])
def test_what_is_no_safetensors_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(NotConvertible):
        list(read_safetensors(path))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = safetensors(tmp_path / "x", {"a": numpy.ones(100, numpy.float32)})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(NotConvertible, match="cut short"):
        list(read_safetensors(path))


def test_tensor_names() -> None:
    assert tensor_name("embeddings.word_embeddings.weight") == "token_embd.weight"
    assert tensor_name("bert.encoder.layer.5.attention.output.LayerNorm.bias") == "blk.5.attn_output_norm.bias"
    assert tensor_name("encoder.layer.0.output.dense.weight") == "blk.0.ffn_down.weight"
    assert tensor_name("pooler.dense.weight") is None
    with pytest.raises(NotConvertible):
        tensor_name("encoder.layer.0.surprise.weight")


def test_the_vocabulary_marks_the_beginnings_of_words() -> None:
    assert vocabulary(["[CLS]", "cat", "##s", "["]) == ["[CLS]", "\u2581cat", "s", "\u2581["]


def test_a_tiny_bert_becomes_a_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    config = {"vocab_size": 7, "max_position_embeddings": 16, "hidden_size": 4, "num_hidden_layers": 1}
    config |= {"intermediate_size": 8, "num_attention_heads": 2, "layer_norm_eps": 1e-12, "type_vocab_size": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    matrix = numpy.arange(28, dtype=numpy.float32).reshape(7, 4)
    tensors = {
        "embeddings.word_embeddings.weight": matrix,
        "embeddings.position_embeddings.weight": numpy.ones((16, 4), numpy.float32),
        "encoder.layer.0.attention.self.query.weight": numpy.ones((4, 4), numpy.float32),
        "encoder.layer.0.attention.self.query.bias": numpy.ones(4, numpy.float32),
        "pooler.dense.weight": numpy.ones((4, 4), numpy.float32),
    }
    safetensors(tmp_path / "model.safetensors", tensors)
    convert(tmp_path, tmp_path / "out.gguf")
    read = gguf.GGUFReader(str(tmp_path / "out.gguf"))
    found = {one.name: one for one in read.tensors}
    assert set(found) == {"token_embd.weight", "position_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_q.bias"}
    assert numpy.array_equal(found["token_embd.weight"].data, matrix.astype(numpy.float16))
    assert found["position_embd.weight"].data.dtype == numpy.float32
    assert not list(tmp_path.glob("*.part"))


def test_an_incomplete_vocabulary_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    (tmp_path / "config.json").write_text('{"vocab_size": 1}')
    with pytest.raises(NotConvertible, match="CLS"):
        convert(tmp_path, tmp_path / "out.gguf")


def test_a_stamp_is_for_its_inputs(tmp_path: Path) -> None:
    stamps = Stamps(tmp_path / "stamps")
    assert not stamps.done("a", "1")
    stamps.mark("a", "1")
    assert stamps.done("a", "1") and not stamps.done("a", "2")
    stamps.forget("a")
    assert not stamps.done("a", "1")


def test_a_failed_command_shows_the_end_of_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = Steps(tmp_path)
    with pytest.raises(StepFailed, match="exit 3") as failed, steps.step("trying"):
        steps.run("try", ["sh", "-c", "echo the reason >&2; exit 3"])
    assert "the reason" in str(failed.value)
    assert "done" not in capsys.readouterr().out


def test_nothing_starts_after_a_stop(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    steps.stop()
    with pytest.raises(StepFailed):
        steps.run("try", ["true"])


def test_a_cuda_build_is_kept_by_a_plain_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    built = llama.inputs("v1", None)
    assert built.endswith("-DGGML_CUDA=on")
    monkeypatch.delenv("CMAKE_ARGS")
    assert llama.inputs("v1", built) == built
    assert llama.inputs("v2", built) != built
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_VULKAN=on")
    assert llama.inputs("v1", built) != built


def test_what_the_user_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    monkeypatch.delenv("SWITCHYARD_LLAMA_CPP", raising=False)
    assert llama.brought() is None
    monkeypatch.setenv("SWITCHYARD_LLAMA_CPP", str(tmp_path))
    with pytest.raises(StepFailed, match="libllama"):
        llama.brought()
    (tmp_path / "libllama.so").touch()
    assert llama.brought() == tmp_path
    wheel = tmp_path / "llama_cpp_python-1-py3-none-any.whl"
    wheel.touch()
    monkeypatch.setenv("SWITCHYARD_LLAMA_CPP", str(wheel))
    assert llama.brought() == wheel


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "apt-get install" in (llama.compiler_missing() or "")
    for name in ("gcc", "g++"):
        (tmp_path / name).touch(mode=0o755)
    assert llama.compiler_missing() is None


def test_libraries_are_laid_into_the_package_with_their_links(tmp_path: Path) -> None:
    built, package = tmp_path / "bin", tmp_path / "llama_cpp"
    built.mkdir()
    (package / "lib").mkdir(parents=True)
    (package / "lib" / "libold.so").touch()
    (built / "libllama.so.0").write_text("code")
    (built / "libllama.so").symlink_to("libllama.so.0")
    (built / "tool").touch()
    llama.place_libraries(built, package)
    assert sorted(one.name for one in (package / "lib").iterdir()) == ["libllama.so", "libllama.so.0"]
    assert (package / "lib" / "libllama.so").is_symlink()
    assert (package / "lib" / "libllama.so").read_text() == "code"


def test_a_source_package_is_unpacked_once_and_whole(tmp_path: Path) -> None:
    sdist = tmp_path / "pkg-1.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("pkg-1/a.txt", "pkg-1/vendor/llama.cpp/src/b.txt", "pkg-1/vendor/llama.cpp/docs/c.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            archive.addfile(entry, io.BytesIO(b"hi"))
    target = llama.unpack(sdist, tmp_path)
    assert (target / "a.txt").read_text() == "hi"
    assert (target / "vendor/llama.cpp/src/b.txt").exists()
    assert not (target / "vendor/llama.cpp/docs").exists()
    (target / "mark").touch()
    assert (llama.unpack(sdist, tmp_path) / "mark").exists()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "pkg-1/../../evil", "other/evil"])
def test_a_source_package_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    sdist = tmp_path / "pkg-1.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(StepFailed, match="evil"):
        llama.unpack(sdist, tmp_path / "into")
    assert not list(tmp_path.rglob("evil"))


def test_the_pinned_version_comes_from_pyproject() -> None:
    assert llama_requirement(ROOT).startswith("llama-cpp-python==")
    assert Places(ROOT).models == ROOT / "models"


def test_the_embedded_default_uses_the_files_that_the_installer_makes() -> None:
    from deploy.bootstrap.places import CHAT_MODEL, EMBED_MODEL
    from gateway.config.embedded import CHAT_MODEL_FILE, EMBED_MODEL_FILE

    assert f"models/{CHAT_MODEL}" == CHAT_MODEL_FILE
    assert f"models/{EMBED_MODEL}" == EMBED_MODEL_FILE


def test_every_role_that_the_makefile_asks_for_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make test-deploy` once asked for a role that the command line refused."""
    roles = re.findall(r"\$\(INSTALL\) (\w+)", (ROOT / "Makefile").read_text())
    installed: list[str] = []
    monkeypatch.setattr(install.Install, "install", lambda self: installed.append("done"))
    assert [install.main([role]) for role in roles] == [0] * len(roles)
    assert set(roles) == {"run", "test", "deploy"} and len(installed) == len(roles)
    assert install.main([]) == install.main(["else"]) == install.main(["run", "test"]) == 2


def test_every_check_that_the_makefile_asks_for_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names = re.findall(r"deploy\.bootstrap\.check (\w+)", (ROOT / "Makefile").read_text())
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> object:
        ran.append(command)
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(check.subprocess, "run", run)
    assert [check.main([name]) for name in names] == [0] * len(names)
    assert set(names) == {"lint", "type", "deploy"} and len(ran) >= len(names)
    assert check.main(["else"]) == 2
