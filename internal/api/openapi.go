package api

import (
	_ "embed"
	"net/http"
)

// Document describes the API to clients (OpenAPI 3).
//
//go:embed openapi.yaml
var Document []byte

func serveDocument(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml")
	// A client that is gone does not need the rest.
	_, _ = w.Write(Document)
}
