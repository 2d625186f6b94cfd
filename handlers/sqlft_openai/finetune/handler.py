"""Training at a provider: what sqlft's Trainer promises, kept by `jobs`."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sqlft.errors import ProviderError
from sqlft.handler import Artifact, Estimate, ModelSpec, Price, Progress, Trainer, TrainingSet
from sqlft_openai.http.address import Address, resolve_address
from sqlft_openai.options import EngineOptions, TrainOptions
from sqlft_openai.providers import Provider

TRAINING_PRICES = {
    "gpt-4.1-nano": 1.5,
    "gpt-4.1-mini": 5.0,
    "gpt-4.1": 25.0,
    "gpt-4o-mini": 3.0,
    "gpt-4o": 25.0,
    "gpt-3.5-turbo": 8.0,
    "davinci-002": 6.0,
    "babbage-002": 0.4,
}
"""OpenAI's prices of a million trained tokens, by the start of the model's name."""
TRAINING_PRICES_SOURCE = "OpenAI's price list of May 2026"


class HostedTrainer(Trainer):
    """The part of a hosted handler that trains."""

    remote = True
    train_options: ClassVar[type] = TrainOptions
    provider: ClassVar[Provider]
    options: EngineOptions

    if TYPE_CHECKING:  # Hosted has it

        def model_name(self, model: ModelSpec, artifact: Artifact | None) -> str:
            """What the provider calls it."""

    def estimate(self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any) -> Estimate | None:
        """Tokens that would be paid; DataError or OptionError for what the provider would refuse."""
        from sqlft_openai.finetune.dialects import check_options
        from sqlft_openai.finetune.rows import prepare_rows

        check_options(options, self.provider)
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
        options: Any,
        workdir: Path,
        report: Callable[[Progress], None],
    ) -> Artifact:
        """Let the provider train; the same workdir takes the same job up again."""
        from sqlft_openai.finetune import jobs
        from sqlft_openai.finetune.dialects import JobSpec, check_options, get_dialect
        from sqlft_openai.finetune.rows import format_jsonl, prepare_rows
        from sqlft_openai.http.transport import ApiClient

        check_options(options, self.provider)
        base = self.model_name(model, start)
        rows = prepare_rows(self.provider, base, data, options)
        api = ApiClient(self._resolve_account_address(), self.options, model=base)
        run = jobs.JobRunner(api, get_dialect(self.provider), workdir, report, self.options.poll_seconds)
        spec = JobSpec("", base, start is not None, "", None, options, rows.epochs)
        job = run.run_to_end(format_jsonl(rows.train), format_jsonl(rows.valid), spec)
        details = {
            "provider": self.provider.name,
            "base": base,
            "tokens": rows.tokens * rows.epochs,
            "tokens_counted_by": rows.counted_by,
            "rows": len(rows.train),
            **self._deploy(api, job, options),
        }
        return jobs.make_artifact(job, run, details)

    def cancel(self, model: ModelSpec, workdir: Path) -> None:
        """Cancel at the provider what `train` began on this workdir."""
        from sqlft_openai.finetune import jobs
        from sqlft_openai.finetune.dialects import get_dialect
        from sqlft_openai.http.transport import ApiClient

        if not (workdir / jobs.RECORD_NAME).exists():
            return
        jobs.cancel_job(ApiClient(self._resolve_account_address(), self.options), get_dialect(self.provider), workdir)

    def count_tokens(self, texts: Sequence[str], model: ModelSpec) -> list[int] | None:
        """By tiktoken, where it is there with its files."""
        from sqlft_openai.finetune.rows import get_token_counter

        counter = get_token_counter(self.model_name(model, None))
        return [counter(text) for text in texts] if counter.is_exact else None

    def price(self, model: ModelSpec, artifact: Artifact | None) -> Price | None:
        """What asking costs, and with OpenAI what a million trained tokens cost."""
        known: Price | None = super().price(model, artifact)  # type: ignore[misc]  # HostedHandler's, which is next
        name = self.model_name(model, artifact).removeprefix("ft:")
        usd = next((usd for start, usd in TRAINING_PRICES.items() if name.startswith(start)), None)
        if usd is None or self.provider.name != "openai":
            return known
        return dataclasses.replace(known or Price(source=TRAINING_PRICES_SOURCE), training=usd)

    def _resolve_account_address(self) -> Address:
        """The address of jobs and files, which for some is not that of answers."""
        address = resolve_address(self.provider, self.options)
        if self.provider.dialect != "fireworks":
            return address
        base = re.sub(r"/inference(/v\d+)?$", r"\1", address.base)
        return address._replace(bases=(f"{base}/{self._find_fireworks_account(address, base)}",))

    def _find_fireworks_account(self, address: Address, base: str) -> str:
        from sqlft_openai.http.errors import RequestError
        from sqlft_openai.http.transport import ApiClient

        given = getattr(self.options, "account", None)
        if given:
            return f"accounts/{str(given).rpartition('/')[2]}"
        try:
            found = ApiClient(address._replace(bases=(base,)), self.options, time.sleep).get("/accounts")
            return str(found["accounts"][0]["name"])
        except (RequestError, KeyError, IndexError, TypeError):
            raise ProviderError(
                "Which account of Fireworks is to train is not known.",
                "Say it: CREATE ML_ENGINE … FROM fireworks USING account = '…'.",
            ) from None

    def _deploy(self, api: Any, job: Any, options: Any) -> dict[str, Any]:
        """What has to be done before the tuned model answers."""
        from sqlft_openai.finetune.dialects import MODEL_FIELDS, get_first_value
        from sqlft_openai.http.errors import RequestError

        if self.provider.name == "azure_openai":
            return {"tuned_deployment": getattr(options, "tuned_deployment", None)}
        if self.provider.dialect != "fireworks" or not getattr(options, "deploy", False):
            return {}
        try:
            made = api.send_once("POST", "/deployedModels", body={"model": get_first_value(job, MODEL_FIELDS)})
            return {"deployed_model": made.get("name")}
        except (RequestError, ProviderError, AttributeError) as e:
            return {"not_deployed": str(e)}
