"""How far to trust a fitted law: noise, bootstrap intervals, profiles, lack of fit and hold-out forecasts."""
