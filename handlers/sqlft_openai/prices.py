"""What requests cost, by the prices that genai-prices knows; None where it knows none."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import Any

from sqlft.handler import Price
from sqlft_openai.bodies import Spent
from sqlft_openai.providers import Engine


class Spending:
    """The cost of one model's requests."""

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model

    def cost(self, spent: Spent) -> float | None:
        """USD of one request; None without counts or without a price."""
        if self._engine.prices is None or spent.input is None or spent.output is None:
            return None
        price = _flat(self._engine.prices, self._model)
        if price is not None:
            cached = spent.cached or 0
            return ((spent.input - cached) * price[0] + cached * price[2] + spent.output * price[1]) / 1e6
        return _reckoned(self._engine.prices, self._model, spent)


def price_of(engine: Engine, model: str) -> Price | None:
    """Prices a million tokens of the smallest requests, where they are known."""
    found = _found(engine.prices, model) if engine.prices else None
    if found is None:
        return None
    import genai_prices

    price = found.model_price
    return Price(
        _number(price.input_mtok),
        _number(price.output_mtok),
        _number(price.cache_read_mtok),
        source=f"genai-prices {genai_prices.__version__}",
    )


@lru_cache(maxsize=256)
def _found(provider: str, model: str) -> Any:
    """genai-prices' answer for a small request, or None."""
    try:
        from genai_prices import Usage, calc_price

        return calc_price(Usage(input_tokens=1, output_tokens=1), model, provider_id=provider)
    except (ImportError, LookupError):
        return None


@lru_cache(maxsize=256)
def _flat(provider: str, model: str) -> tuple[float, float, float] | None:
    """USD a million tokens of input, output and cached input; None where it depends on more than that."""
    found = _found(provider, model)
    if found is None:
        return None
    price = found.model_price
    asked = (price.input_mtok, price.output_mtok, price.cache_read_mtok or price.input_mtok)
    if not all(isinstance(p, (Decimal, int, float)) for p in asked) or getattr(price, "requests_kcount", None):
        return None
    return float(asked[0]), float(asked[1]), float(asked[2])


def _reckoned(provider: str, model: str, spent: Spent) -> float | None:
    if _found(provider, model) is None:
        return None
    from genai_prices import Usage, calc_price

    usage = Usage(input_tokens=spent.input, output_tokens=spent.output, cache_read_tokens=spent.cached or 0)
    return float(calc_price(usage, model, provider_id=provider).total_price)


def _number(price: Any) -> float | None:
    """A price, or the base of one that comes in tiers."""
    price = getattr(price, "base", price)
    return None if price is None else float(price)
