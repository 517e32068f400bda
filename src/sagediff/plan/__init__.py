"""Prompts' vectors to a costed share plan and its waves. Pure: knows neither torch nor pipelines."""
