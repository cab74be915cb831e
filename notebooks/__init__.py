"""The notebooks that come with the package; installed as `arrowquant_nb._notebooks`."""
