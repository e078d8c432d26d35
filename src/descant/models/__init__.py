"""Models as users see them: async handles on an engine."""
