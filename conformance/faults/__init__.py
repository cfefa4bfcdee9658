"""Wrong engines that the judge must catch, and unusual ones that it must not: how the judge is proven."""
