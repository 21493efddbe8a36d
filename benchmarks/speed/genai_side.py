"""OpenVINO GenAI's `VLMPipeline`, which runs LLaVA-NeXT unpruned, from a folder that optimum-intel converted."""

import sys
from importlib import import_module
from typing import Any

import numpy as np

from ptp.benchmarks.speed.turn import Job, Laps, Run
from ptp.errors import BackendError
from ptp.runtime.preprocess.images import load_image


class GenAiSide:
    """A converted model on the CPU in FP32 (implements `Runner`).

    Its own tiling and tokenising count as vision, since it does not time them apart; its times are its own, and its
    time to the first token holds the vision part. It counts the text's tokens alone, so that none are reported.
    By default it would remember the keys and values of the answer that warms up, and compute no prefill of the same
    question again; that is switched off, the prompt goes through in one piece as by default.

    Raises:
        BackendError: OpenVINO GenAI is not installed, or cannot load the model.
    """

    def __init__(self, job: Job) -> None:
        try:
            genai: Any = import_module("openvino_genai")
            self._tensor: Any = import_module("openvino").Tensor
            scheduler = genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False
            scheduler.max_num_batched_tokens = sys.maxsize
            self._pipeline = genai.VLMPipeline(
                job.model,
                "CPU",
                scheduler_config=scheduler,
                INFERENCE_NUM_THREADS=job.threads,
                INFERENCE_PRECISION_HINT="f32",
            )
        except (ImportError, RuntimeError) as error:
            raise BackendError(f"OpenVINO GenAI cannot load {job.model}", got=error) from error
        self._config = genai.GenerationConfig(max_new_tokens=job.max_new_tokens, ignore_eos=True, do_sample=False)
        self._job = job
        self.details: dict[str, str] = {"openvino-genai": str(genai.__version__)}

    def run(self) -> Run:
        """See `Runner.run`."""
        job, laps = self._job, Laps()
        image = self._tensor(np.asarray(load_image(job.image))[None])
        laps.lap("preprocess")
        try:
            result = self._pipeline.generate(job.prompt, images=[image], generation_config=self._config)
        except RuntimeError as error:
            raise BackendError("OpenVINO GenAI failed", got=error) from error
        metrics = result.perf_metrics
        vision, first = metrics.get_prepare_embeddings_duration().mean, metrics.get_ttft().mean
        laps.ms |= {
            "vision_encoder": vision,
            "llm_prefill": first - vision,
            "llm_generation": metrics.get_tpot().mean * (job.max_new_tokens - 1),
        }
        return Run(stages_ms=laps.ms, image_tokens=0, prompt_tokens=0, token_ids=[])
