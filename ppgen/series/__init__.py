"""Time series: forecasts of several models compared on their held-out end, and the regimes behind them."""
