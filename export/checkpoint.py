"""Find a checkpoint, read its configuration, and load its weights strictly through transformers' own classes."""

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from ptp.bundle.manifest import ChatFormat, LanguageModel, Precision, Prompting, Tiling
from ptp.bundle.tokenizer import TOKENIZER
from ptp.errors import CheckpointError, cause
from ptp.export import weights
from ptp.export.adapters import adapter_for
from ptp.export.adapters.base import Adapter
from ptp.export.chat_format import adds_special_tokens, chat_format
from ptp.export.checkpoint_files import COPIED, checked_file, read_json, small_files
from ptp.export.config_values import check_sizes, check_values
from ptp.export.gates import witness
from ptp.export.locate import locate
from ptp.export.token_ids import check_ids, end_tokens
from ptp.export.tokenizer_file import check_tokenizer, shipped_tokenizer
from ptp.export.weights import Skeleton, Weights

LOCAL: Any = {"trust_remote_code": False, "local_files_only": True}
"""How transformers reads a folder: no code of it is run, and nothing else is asked for."""

Progress = Callable[[int, int], None]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk whose configuration was read and checked; its weights are not loaded.

    Attributes:
        id: what the user asked for, in its full form.
        revision: Hugging Face commit, or None for a folder.
        folder: where its files are.
        adapter: the family's adapter.
        config: transformers' configuration.
        generation_config: the checkpoint's, or what transformers makes of the configuration.
        processor: transformers' processor, its image processor in PIL form.
        chat: the chat template's text around a question.
    """

    id: str
    revision: str | None
    folder: Path
    adapter: type[Adapter]
    config: Any
    generation_config: GenerationConfig
    processor: Any
    chat: ChatFormat

    @property
    def tiling(self) -> Tiling:
        """How images become tiles, for all of the checkpoint's grids."""
        return self.adapter.tiling(self.config, self.processor.image_processor)

    @property
    def language_model(self) -> LanguageModel:
        """Sizes of the decoder."""
        text = self.config.text_config
        return LanguageModel(
            num_layers=text.num_hidden_layers,
            num_kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            hidden_size=text.hidden_size,
            vocab_size=text.vocab_size,
            max_position_embeddings=text.max_position_embeddings,
        )

    def prompting(self, generation_config: Any, max_prompt: int) -> Prompting:
        """Return what turns a question into token ids.

        Args:
            generation_config: that of the loaded model.
            max_prompt: most text tokens of a prompt.

        Raises:
            CheckpointError: an end token is no id of the model.
        """
        token, tokenizer = self.processor.image_token, self.processor.tokenizer
        eos = generation_config.eos_token_id
        eos = tokenizer.eos_token_id if eos is None else eos
        return Prompting(
            image_token=token,
            image_token_id=self.config.image_token_id,
            add_special_tokens=adds_special_tokens(self.chat, token, tokenizer.bos_token),
            eos_token_ids=end_tokens(eos, self.config.text_config.vocab_size),
            max_prompt=max_prompt,
            chat=self.chat,
        )

    def copy_files(self, folder: Path) -> None:
        """Copy the configuration, tokenizer and template; what the checkpoint lacks is written by transformers."""
        for name in COPIED:
            if (self.folder / name).exists():
                shutil.copyfile(checked_file(self.folder, name), folder / name)
        if not (folder / "preprocessor_config.json").exists():
            self.processor.image_processor.to_json_file(folder / "preprocessor_config.json")
        (folder / "chat_template.jinja").write_text(_template(self.processor, self.id), encoding="utf-8")
        (folder / TOKENIZER).write_bytes(shipped_tokenizer(self.folder, self.processor.tokenizer.backend_tokenizer))


def open_checkpoint(model: str, revision: str | None, *, weights: bool) -> Checkpoint:
    """Find a checkpoint and read everything but its weights.

    Args:
        model: short name, Hugging Face id, or folder.
        revision: branch, tag or commit of a Hugging Face id.
        weights: also download the weights of a Hugging Face id, and its evaluation.

    Raises:
        CheckpointError: it cannot be found or read, or its family is not supported.
    """
    folder, name, commit = locate(model, revision, weights=weights)
    if revision is not None and commit is None:
        raise CheckpointError("a revision is of a Hugging Face id", got=f"--revision {revision} with {model}")
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"{folder} is not a checkpoint in Hugging Face layout", expected="a folder with config.json"
        )
    with small_files(folder) as files, _transformers_errors(folder, files):
        data = read_json(files / "config.json")
        adapter = adapter_for(data.get("model_type") if isinstance(data, dict) else None)
        check_sizes(data)
        config = AutoConfig.from_pretrained(files, **LOCAL)
        config._attn_implementation = "sdpa"  # what a checkpoint names may be code on the hub
        check_values(config)
        adapter.check(config)
        check_tokenizer(folder)
        processor = adapter.load_processor(files, AutoTokenizer.from_pretrained(files, **LOCAL))
        adapter.tiling(config, processor.image_processor)
        _check_image_token(processor, config)
        shipped_tokenizer(folder, processor.tokenizer.backend_tokenizer)
        chat = chat_format(processor, _template(processor, name), name)
        generation = _generation_config(files, config)
    checkpoint = Checkpoint(
        id=name,
        revision=commit,
        folder=folder,
        adapter=adapter,
        config=config,
        generation_config=generation,
        processor=processor,
        chat=chat,
    )
    checkpoint.prompting(generation, 1)
    return checkpoint


def _generation_config(files: Path, config: Any) -> GenerationConfig:
    if (files / "generation_config.json").exists():
        return GenerationConfig.from_pretrained(files, local_files_only=True)
    return GenerationConfig.from_model_config(config)


def _check_image_token(processor: Any, config: Any) -> None:
    """Refuse a tokenizer that does not fit the model.

    Raises:
        CheckpointError: they disagree on the image token, or a token has no embedding.
    """
    token, tokenizer, rows = processor.image_token, processor.tokenizer, config.text_config.vocab_size
    found, expected = tokenizer.convert_tokens_to_ids(token), config.image_token_id
    if found != expected:
        raise CheckpointError(
            f"the tokenizer's id of {token!r} is not the model's image_token_index", got=found, expected=expected
        )
    check_ids(tokenizer, rows)


def _template(processor: Any, name: str) -> str:
    """Return the source of a checkpoint's chat template."""
    template = processor.chat_template
    if isinstance(template, dict):  # several templates by name
        template = template.get("default")
    if not isinstance(template, str):
        raise CheckpointError(f"{name} has no chat template", do="add chat_template.jinja to the checkpoint")
    return template


def find_weights(checkpoint: Checkpoint, precision: Precision) -> Weights:
    """Find the model's weights, strictly: every tensor the model has must be in the files, and no other.

    Args:
        checkpoint: where they are.
        precision: what they are rounded to.

    Raises:
        CheckpointError: tensors are missing, extra or of another shape (all named), or a file is damaged.
    """
    with _transformers_errors(checkpoint.folder):
        model = weights.empty_model(checkpoint.adapter.load_class(), checkpoint.config)
        return weights.find_weights(checkpoint.folder, model, DTYPES[precision])


def check_weights(checkpoint: Checkpoint, values: Weights, progress: Progress | None = None) -> None:
    """Refuse weights that are not finite, or not the ones that transformers itself would load.

    Args:
        checkpoint: where they were found.
        values: what was found.
        progress: called with tensors done and tensors in all.

    Raises:
        CheckpointError: all such tensors.
    """
    with _transformers_errors(checkpoint.folder):
        weights.check_finite(values, progress)
        witness.check_weights(checkpoint.folder, checkpoint.adapter.load_class(), checkpoint.config, values)


def load_model(checkpoint: Checkpoint, values: Weights) -> Any:
    """Return transformers' model, which computes in FP32 whatever its weights are rounded to.

    The weights of a large one stay on disk, and are read each time a module of it is called.

    Raises:
        CheckpointError: a file is damaged.
    """
    with _transformers_errors(checkpoint.folder):
        model = weights.empty_model(checkpoint.adapter.load_class(), checkpoint.config, values.untied)
        model.generation_config = copy.deepcopy(checkpoint.generation_config)
        weights.fill(model, values)
    return model


def make_skeleton(checkpoint: Checkpoint, values: Weights) -> Skeleton:
    """Return transformers' model as it is traced: types and shapes of its weights, and where to read them."""
    return weights.make_skeleton(checkpoint.adapter.load_class(), checkpoint.config, values)


@contextmanager
def _transformers_errors(folder: Path, files: Path | None = None) -> Iterator[None]:
    """Turn whatever transformers raises on a bad folder into one line, and silence its progress bars.

    Args:
        folder: the checkpoint.
        files: copies of its small files, where transformers reads them; messages name the checkpoint.
    """
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError, … by version and by damage
        got = cause(error) if files is None else cause(error).replace(str(files), str(folder))
        raise CheckpointError(f"cannot load {folder}", got=got) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
