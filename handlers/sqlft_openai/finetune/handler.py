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
from sqlft_openai.http.address import Address, address_of
from sqlft_openai.options import EngineOptions, TrainOptions
from sqlft_openai.providers import Engine

USD = {
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
USD_SOURCE = "OpenAI's price list of May 2026"


class Tuning(Trainer):
    """The part of a hosted handler that trains."""

    remote = True
    train_options: ClassVar[type] = TrainOptions
    engine: ClassVar[Engine]
    options: EngineOptions

    if TYPE_CHECKING:  # Hosted has it

        def model_name(self, model: ModelSpec, artifact: Artifact | None) -> str:
            """What the provider calls it."""

    def estimate(self, model: ModelSpec, start: Artifact | None, data: TrainingSet, options: Any) -> Estimate | None:
        """Tokens that would be paid; DataError or OptionError for what the provider would refuse."""
        from sqlft_openai.finetune.dialects import check_options
        from sqlft_openai.finetune.rows import checked

        check_options(options, self.engine)
        rows = checked(self.engine, self.model_name(model, start), data, options)
        remarks = [f"{rows.epochs} epochs", f"tokens counted by {rows.counted}"]
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
        from sqlft_openai.finetune.dialects import Wanted, check_options, dialect_of
        from sqlft_openai.finetune.rows import checked, jsonl
        from sqlft_openai.http.transport import Api

        check_options(options, self.engine)
        base = self.model_name(model, start)
        rows = checked(self.engine, base, data, options)
        api = Api(self._account(), self.options, model=base)
        run = jobs.Run(api, dialect_of(self.engine), workdir, report, self.options.poll_seconds)
        wanted = Wanted("", base, start is not None, "", None, options, rows.epochs)
        job = run.job(jsonl(rows.train), jsonl(rows.valid), wanted)
        details = {
            "provider": self.engine.name,
            "base": base,
            "tokens": rows.tokens * rows.epochs,
            "tokens_counted_by": rows.counted,
            "rows": len(rows.train),
            **self._afterwards(api, job, options),
        }
        return jobs.artifact_of(job, run, details)

    def cancel(self, model: ModelSpec, workdir: Path) -> None:
        """Cancel at the provider what `train` began on this workdir."""
        from sqlft_openai.finetune import jobs
        from sqlft_openai.finetune.dialects import dialect_of
        from sqlft_openai.http.transport import Api

        if not (workdir / jobs.NAME).exists():
            return
        jobs.cancel(Api(self._account(), self.options), dialect_of(self.engine), workdir)

    def count_tokens(self, texts: Sequence[str], model: ModelSpec) -> list[int] | None:
        """By tiktoken, where it is there with its files."""
        from sqlft_openai.finetune.rows import counting

        count = counting(self.model_name(model, None))
        return [count(text) for text in texts] if count.exact else None

    def price(self, model: ModelSpec, artifact: Artifact | None) -> Price | None:
        """What asking costs, and with OpenAI what a million trained tokens cost."""
        known = super().price(model, artifact)
        name = self.model_name(model, artifact).removeprefix("ft:")
        usd = next((usd for start, usd in USD.items() if name.startswith(start)), None)
        if usd is None or self.engine.name != "openai":
            return known
        return dataclasses.replace(known or Price(source=USD_SOURCE), training=usd)

    def _account(self) -> Address:
        """The address of jobs and files, which for some is not that of answers."""
        address = address_of(self.engine, self.options)
        if self.engine.tuning != "fireworks":
            return address
        base = re.sub(r"/inference(/v\d+)?$", r"\1", address.base)
        return address._replace(bases=(f"{base}/{self._fireworks_account(address, base)}",))

    def _fireworks_account(self, address: Address, base: str) -> str:
        from sqlft_openai.http.errors import Fault
        from sqlft_openai.http.transport import Api

        given = getattr(self.options, "account", None)
        if given:
            return f"accounts/{str(given).rpartition('/')[2]}"
        try:
            found = Api(address._replace(bases=(base,)), self.options, time.sleep).get("/accounts")
            return str(found["accounts"][0]["name"])
        except (Fault, KeyError, IndexError, TypeError):
            raise ProviderError(
                "Which account of Fireworks is to train is not known.",
                "Say it: CREATE ML_ENGINE … FROM fireworks USING account = '…'.",
            ) from None

    def _afterwards(self, api: Any, job: Any, options: Any) -> dict[str, Any]:
        """What has to be done before the tuned model answers."""
        from sqlft_openai.finetune.dialects import RESULT, first_of
        from sqlft_openai.http.errors import Fault

        if self.engine.name == "azure_openai":
            return {"tuned_deployment": getattr(options, "tuned_deployment", None)}
        if self.engine.tuning != "fireworks" or not getattr(options, "deploy", False):
            return {}
        try:
            made = api.once("POST", "/deployedModels", body={"model": first_of(job, RESULT)})
            return {"deployed_model": made.get("name")}
        except (Fault, ProviderError, AttributeError) as e:
            return {"not_deployed": str(e)}
