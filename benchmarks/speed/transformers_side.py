"""transformers' own model as its users run it: the processor, then `generate`."""

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers.generation.streamers import BaseStreamer

from ptp.benchmarks.speed.turn import Job, Laps, Run
from ptp.export.checkpoint import DTYPES, open_checkpoint


class TransformersSide:
    """A checkpoint, eager or with vision tower and language model compiled (implements `Runner`).

    `generate` gives no times. The first call of the projector's hook ends the vision stage (packing the tokens counts
    as prefill), and a streamer hears of each token.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        transformers.logging.set_verbosity_error()
        checkpoint = open_checkpoint(job.model, None, weights=True)
        load = checkpoint.adapter.load_class().from_pretrained
        self._dtype = DTYPES[job.precision]
        self._model = model = load(checkpoint.folder, dtype=self._dtype).eval().to(job.device)
        model.generation_config.eos_token_id = None  # all sides answer with equally many tokens
        self._processor = checkpoint.processor
        self._image_token: int = checkpoint.config.image_token_id
        self._job = job
        self._laps = Laps()
        model.model.multi_modal_projector.register_forward_hook(self._projected)
        if job.backend == "compile":
            model.model.vision_tower.compile()
            model.model.language_model.compile()
        self.details = {
            "attention": str(model.model.language_model.config._attn_implementation),
            "image processor": type(self._processor.image_processor).__name__,
        }

    def run(self) -> Run:
        """See `Runner.run`."""
        job = self._job
        self._laps = laps = Laps()
        inputs = self._inputs().to(job.device, self._dtype)
        laps.lap("preprocess")
        streamer = _Tokens(laps)
        with torch.inference_mode():
            self._model.generate(
                **inputs, do_sample=False, max_new_tokens=job.max_new_tokens, use_cache=True, streamer=streamer
            )
        laps.lap("llm_generation")
        ids = inputs["input_ids"][0]
        return Run(
            stages_ms=laps.ms,
            image_tokens=int((ids == self._image_token).sum()),
            prompt_tokens=len(ids),
            token_ids=streamer.token_ids,
        )

    def _inputs(self) -> Any:
        content = [{"type": "image"}, {"type": "text", "text": self._job.prompt}]
        message = [{"role": "user", "content": content}]
        text = self._processor.apply_chat_template(message, add_generation_prompt=True)
        with Image.open(Path(self._job.image)) as image:
            pixels = image.convert("RGB")
        # a template that writes the BOS token itself must not get a second one
        bos = self._processor.tokenizer.bos_token
        return self._processor(
            images=pixels, text=text, return_tensors="pt", add_special_tokens=not (bos and text.startswith(bos))
        )

    def _projected(self, module: Any, inputs: Any, output: Any) -> None:
        if self._job.device == "cuda":
            torch.cuda.synchronize()
        self._laps.lap("vision_encoder")


class _Tokens(BaseStreamer):  # type: ignore[misc]  # transformers has no types
    """Hears of the prompt first, then of each token."""

    def __init__(self, laps: Laps) -> None:
        self.token_ids: list[int] = []
        self._laps = laps
        self._heard_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, or the next token."""
        if not self._heard_prompt:
            self._heard_prompt = True
            return
        if not self.token_ids:
            self._laps.lap("llm_prefill")
        self.token_ids += value.flatten().tolist()

    def end(self) -> None:
        """Nothing is left to do."""
