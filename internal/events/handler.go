package events

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// ContentType is that of a stream of events: one JSON object a line.
const ContentType = "application/x-ndjson"

// ServeHTTP answers a GET with the events as they happen, one JSON object a line,
// until the client goes or the bus is closed. The query's since asks for those
// before: after the event of that number (0: all that are kept), or since a time
// (RFC 3339).
func (b *Bus) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s, err := b.requested(r)
	if err != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": err.Error()})
		return
	}
	defer s.Close()
	control := http.NewResponseController(w)
	// The server's deadlines are for requests. Where it has none there is
	// nothing to lift.
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Time{})
	w.Header().Set("Content-Type", ContentType)
	w.WriteHeader(http.StatusOK)
	// At once: the client may wait to know that it misses nothing from now on.
	if control.Flush() != nil {
		return
	}
	lines := json.NewEncoder(w)
	for {
		e, err := s.Next(r.Context())
		if err != nil || lines.Encode(e) != nil || control.Flush() != nil {
			return
		}
	}
}

// requested is the subscription that a request asks for.
func (b *Bus) requested(r *http.Request) (*Subscription, error) {
	if r.Method != http.MethodGet {
		return nil, fmt.Errorf("there is no %s %s", r.Method, r.URL.Path)
	}
	query := r.URL.Query()
	if !query.Has("since") {
		return b.Subscribe(), nil
	}
	since := query.Get("since")
	if seq, err := strconv.ParseUint(since, 10, 64); err == nil {
		return b.SubscribeAfter(seq), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, since); err == nil {
		return b.SubscribeSince(t), nil
	}
	return nil, fmt.Errorf("since=%s: want the number of an event, or a time such as 2006-01-02T15:04:05Z", since)
}
