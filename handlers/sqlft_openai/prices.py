"""What requests cost, by the prices that genai-prices knows; None where it knows none."""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING

from sqlft.handler import Price
from sqlft_openai.http.parsing import TokenUsage
from sqlft_openai.providers import Provider

if TYPE_CHECKING:
    from genai_prices.types import PriceCalculation, TieredPrices


class CostCalculator:
    """The cost of one model's requests."""

    def __init__(self, provider: Provider, model: str) -> None:
        self._provider, self._model = provider, model

    def calculate(self, usage: TokenUsage) -> float | None:
        """USD of one request; None without counts or without a price."""
        if self._provider.prices is None or usage.input is None or usage.output is None:
            return None
        price = _get_flat_prices(self._provider.prices, self._model)
        if price is not None:
            cached = usage.cached or 0
            return ((usage.input - cached) * price[0] + cached * price[2] + usage.output * price[1]) / 1e6
        return _calculate_cost(self._provider.prices, self._model, usage)


def look_up_price(provider: Provider, model: str) -> Price | None:
    """Prices per million tokens of the smallest requests, where they are known."""
    known = _look_up_model(provider.prices, model) if provider.prices else None
    if known is None:
        return None
    import genai_prices

    price = known.model_price
    return Price(
        _to_float(price.input_mtok),
        _to_float(price.output_mtok),
        _to_float(price.cache_read_mtok),
        source=f"genai-prices {genai_prices.__version__}",
    )


@lru_cache(maxsize=256)
def _look_up_model(provider: str, model: str) -> PriceCalculation | None:
    """genai-prices' answer for a small request, or None."""
    try:
        from genai_prices import Usage, calc_price

        return calc_price(Usage(input_tokens=1, output_tokens=1), model, provider_id=provider)
    except (ImportError, LookupError):
        return None


@lru_cache(maxsize=256)
def _get_flat_prices(provider: str, model: str) -> tuple[float, float, float] | None:
    """USD per million tokens of input, output and cached input; None where it depends on more than that."""
    known = _look_up_model(provider, model)
    if known is None or getattr(known.model_price, "requests_kcount", None):
        return None
    price = known.model_price
    rates = (price.input_mtok, price.output_mtok, price.cache_read_mtok or price.input_mtok)
    flat = [float(rate) for rate in rates if isinstance(rate, Decimal | int | float)]
    return (flat[0], flat[1], flat[2]) if len(flat) == len(rates) else None


def _calculate_cost(provider: str, model: str, usage: TokenUsage) -> float | None:
    if _look_up_model(provider, model) is None:
        return None
    from genai_prices import Usage, calc_price

    priced = Usage(input_tokens=usage.input, output_tokens=usage.output, cache_read_tokens=usage.cached or 0)
    return float(calc_price(priced, model, provider_id=provider).total_price)


def _to_float(price: Decimal | TieredPrices | None) -> float | None:
    """A price, or the base of one that comes in tiers."""
    if price is None:
        return None
    return float(price if isinstance(price, Decimal | int | float) else price.base)
