"""Hand keys to an HSM over PKCS#11."""
