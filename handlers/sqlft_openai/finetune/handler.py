"""Training at a provider: what sqlft's Trainer promises, kept by `jobs`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sqlft.handler import Artifact, Estimate, ModelSpec, Progress, RenderedRow, Trainer, TrainingSet
from sqlft_openai.http.address import require_one_server, resolve_address
from sqlft_openai.options import EngineOptions, HostedTrainOptions
from sqlft_openai.providers import Provider

if TYPE_CHECKING:
    from sqlft_openai.finetune.dialects import Dialect
    from sqlft_openai.http.api import ApiClient


class HostedTrainer(Trainer):
    """The part of a hosted handler that trains."""

    remote = True
    provider: ClassVar[Provider]
    options: EngineOptions

    if TYPE_CHECKING:  # HostedHandler has it

        def model_name(self, model: ModelSpec, artifact: Artifact | None) -> str:
            """What the provider calls it."""

    def estimate(
        self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: HostedTrainOptions
    ) -> Estimate | None:
        """Tokens that would be paid; DataError or OptionError for what the provider would refuse."""
        from sqlft_openai.finetune.dialects import check_options
        from sqlft_openai.finetune.rows import prepare_rows

        check_options(options, self.provider)
        require_one_server(self.provider, self.options)
        rows = prepare_rows(self.provider, self.model_name(model, start), data, options)
        remarks = [f"{rows.epochs} epochs", f"tokens counted by {rows.counted_by}"]
        if rows.left_out:
            remarks.append(f"{rows.left_out:,} rows left out by max_train_tokens")
        return Estimate(len(rows.train), rows.tokens * rows.epochs, remarks=tuple(remarks))

    def train(
        self,
        model: ModelSpec,
        start: Artifact | None,
        data: TrainingSet,
        options: HostedTrainOptions,
        workdir: Path,
        report: Callable[[Progress], None],
    ) -> Artifact:
        """Let the provider train; the same workdir takes the same job up again."""
        from sqlft_openai.finetune.dialects import MODEL_FIELDS, JobSpec, check_options
        from sqlft_openai.finetune.jobs import JobRunner, make_artifact
        from sqlft_openai.finetune.rows import format_jsonl, prepare_rows
        from sqlft_openai.http.parsing import get_text

        check_options(options, self.provider)
        base = self.model_name(model, start)
        rows = prepare_rows(self.provider, base, data, options)
        api, dialect = self._reach_account(base)
        run = JobRunner(api, dialect, workdir, report, self.options.poll_seconds)
        spec = JobSpec("", base, start is not None, "", None, options)
        job = run.run_to_end(format_jsonl(rows.train), format_jsonl(rows.valid), spec)
        details = {
            "provider": self.provider.name,
            "base": base,
            "tokens": rows.tokens * rows.epochs,
            "tokens_counted_by": rows.counted_by,
            "rows": len(rows.train),
            **dialect.deploy(api, get_text(job, *MODEL_FIELDS) or "", options),
        }
        return make_artifact(job, run.record, details)

    def render_rows(
        self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: HostedTrainOptions
    ) -> list[RenderedRow]:
        """The lines that are uploaded."""
        from sqlft_openai.finetune.rows import read_examples, show_example

        return [show_example(example) for example in read_examples(self.provider, data.train, options)]

    def cancel(self, model: ModelSpec, workdir: Path) -> None:
        """Cancel at the provider what `train` began on this workdir."""
        from sqlft_openai.finetune.jobs import RECORD_NAME, cancel_job

        if (workdir / RECORD_NAME).exists():
            cancel_job(*self._reach_account(""), workdir)

    def count_tokens(self, texts: Sequence[str], model: ModelSpec) -> list[int] | None:
        """By tiktoken, where it is there with its files."""
        from sqlft_openai.finetune.rows import get_token_counter

        counter = get_token_counter(self.model_name(model, None))
        return [counter(text) for text in texts] if counter.is_exact else None

    def _reach_account(self, model: str) -> tuple[ApiClient, Dialect]:
        """The account that trains, and how to speak to it."""
        from sqlft_openai.finetune.dialects import get_dialect
        from sqlft_openai.http.api import ApiClient

        dialect = get_dialect(self.provider)
        address = dialect.find_account(resolve_address(self.provider, self.options), self.options)
        return ApiClient(address, self.options, model), dialect
