package manager

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"gantline/internal/control"
)

// apiError is an error as the API answers it: {kind, message}.
type apiError struct {
	status  int
	Kind    control.Kind `json:"kind"`
	Message string       `json:"message"`
}

func (e *apiError) GetStatus() int { return e.status }
func (e *apiError) Error() string  { return e.Message }

var statusOfKind = map[control.Kind]int{
	control.KindFailed:      http.StatusInternalServerError,
	control.KindUsage:       http.StatusBadRequest,
	control.KindNotFound:    http.StatusNotFound,
	control.KindRefused:     http.StatusConflict,
	control.KindUnreachable: http.StatusBadGateway,
	control.KindTimeout:     http.StatusGatewayTimeout,
	control.KindDifferent:   http.StatusConflict,
}

// toAPI gives any error its kind and status.
func toAPI(err error) *apiError {
	var e *control.Error
	if errors.As(err, &e) {
		return &apiError{status: statusOfKind[e.Kind], Kind: e.Kind, Message: e.Message}
	}
	if errors.Is(err, control.ErrConflict) {
		return &apiError{status: http.StatusConflict, Kind: control.KindFailed,
			Message: "the object was changed meanwhile; try again"}
	}
	return &apiError{status: http.StatusInternalServerError, Kind: control.KindFailed, Message: err.Error()}
}

// ourErrors makes huma's own errors (malformed bodies, unknown fields) look like ours. It is huma's one global.
func ourErrors() {
	huma.NewError = func(status int, message string, causes ...error) huma.StatusError {
		kind := control.KindFailed
		switch {
		case status == http.StatusNotFound:
			kind = control.KindNotFound
		case status >= 400 && status < 500:
			kind = control.KindUsage
		}
		parts := []string{message}
		for _, c := range causes {
			if c != nil {
				parts = append(parts, c.Error())
			}
		}
		return &apiError{status: status, Kind: kind, Message: strings.Join(parts, ": ")}
	}
}

func init() { ourErrors() }

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client may be gone
}

func writeError(w http.ResponseWriter, err error) {
	e := toAPI(err)
	writeJSON(w, e.status, e)
}
