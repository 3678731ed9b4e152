package events

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

func expect(t *testing.T, s *Subscription, want Event) {
	t.Helper()
	got, err := s.Next(t.Context())
	got.Time, want.Time = time.Time{}, time.Time{}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestPublish(t *testing.T) {
	b := New("web")
	b.Publish(Event{Type: Started})
	now := b.Subscribe()
	defer now.Close()
	b.Publish(Event{Type: DeviceReset, Device: "disk 0", Message: "its driver broke the rules"})
	expect(t, now, Event{Seq: 2, Type: DeviceReset, Name: "web", Device: "disk 0", Message: "its driver broke the rules"})
	all := b.SubscribeAfter(0)
	defer all.Close()
	expect(t, all, Event{Seq: 1, Type: Started, Name: "web"})
	expect(t, all, Event{Seq: 2, Type: DeviceReset, Name: "web", Device: "disk 0", Message: "its driver broke the rules"})
	future := b.SubscribeAfter(100) // of the guest that had the name before, say
	defer future.Close()
	live := make(chan Event)
	go func() {
		e, _ := now.Next(t.Context())
		live <- e
	}()
	b.Publish(Event{Type: Ended, Name: "other"})
	if e := <-live; e.Type != Ended || e.Name != "other" || time.Since(e.Time) > time.Minute {
		t.Errorf("got %+v", e)
	}
	b.Close()
	b.Publish(Event{Type: Started})
	for _, s := range []*Subscription{all, future} {
		expect(t, s, Event{Seq: 3, Type: Ended, Name: "other"})
		if _, err := s.Next(t.Context()); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	}
}

func TestSince(t *testing.T) {
	b := New("web")
	start := time.Now()
	for i := range 5 {
		b.Publish(Event{Type: Paused, Time: start.Add(time.Duration(i) * time.Second)})
	}
	b.Close()
	for since, want := range map[time.Duration]int{-time.Hour: 5, 0: 5, 1: 4, 4 * time.Second: 1, time.Hour: 0} {
		s := b.SubscribeSince(start.Add(since))
		n := 0
		for {
			if _, err := s.Next(t.Context()); err != nil {
				break
			}
			n++
		}
		if n != want {
			t.Errorf("since %v: %d events, want %d", since, n, want)
		}
		s.Close()
	}
}

// TestOverflow: who is too slow is told what is missing, and goes on with what is
// kept.
func TestOverflow(t *testing.T) {
	b := New("web")
	s := b.Subscribe()
	defer s.Close()
	const published = Keep + 10
	for range published {
		b.Publish(Event{Type: Paused})
	}
	expect(t, s, Event{Seq: 10, Type: Dropped, Name: "web", Count: 10})
	for seq := uint64(11); seq <= published; seq++ {
		expect(t, s, Event{Seq: seq, Type: Paused, Name: "web"})
	}
	all := b.SubscribeAfter(3)
	defer all.Close()
	expect(t, all, Event{Seq: 10, Type: Dropped, Name: "web", Count: 7})
	if got, want := b.Stats(), (Stats{Published: published, Dropped: 17, Subscribers: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestNextEndsWithContext(t *testing.T) {
	s := New("web").Subscribe()
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := s.Next(ctx)
		ended <- err
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestDrain(t *testing.T) {
	b := New("web")
	if err := b.Drain(t.Context()); err != nil {
		t.Errorf("without subscribers: %v", err)
	}
	s, other := b.Subscribe(), b.Subscribe()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := b.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with subscribers: %v", err)
	}
	drained := make(chan error)
	go func() { drained <- b.Drain(t.Context()) }()
	s.Close()
	other.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// TestMany has several publish and several listen: each sees every number once
// and in order, or counted among the dropped.
func TestMany(t *testing.T) {
	const publishers, each, listeners = 4, 2000, 4
	b := New("web")
	var listening, publishing sync.WaitGroup
	for range listeners {
		s := b.Subscribe()
		listening.Go(func() {
			defer s.Close()
			var seen uint64
			for {
				e, err := s.Next(t.Context())
				if err != nil {
					break
				}
				if e.Type == Dropped {
					seen += e.Count
				} else {
					seen++
				}
				if e.Seq != seen {
					t.Errorf("event %d after %d others", e.Seq, seen-1)
					return
				}
			}
			if seen != publishers*each {
				t.Errorf("%d events, want %d", seen, publishers*each)
			}
		})
	}
	for range publishers {
		publishing.Go(func() {
			for range each {
				b.Publish(Event{Type: Paused})
			}
		})
	}
	publishing.Wait()
	b.Close()
	listening.Wait()
	if len(b.subscribers) != 0 {
		t.Errorf("%d subscriptions are left", len(b.subscribers))
	}
}

func TestPublishDoesNotAllocate(t *testing.T) {
	b := New("web")
	s := b.Subscribe()
	defer s.Close()
	if n := testing.AllocsPerRun(1000, func() { b.Publish(Event{Type: DeviceReset, Device: "disk 0"}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// stream asks a server with a short ReadTimeout for events, and gives their lines.
func stream(t *testing.T, b *Bus, query string) (*http.Response, *bufio.Scanner) {
	t.Helper()
	server := httptest.NewUnstartedServer(b)
	server.Config.ReadTimeout, server.Config.WriteTimeout = 50*time.Millisecond, 50*time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	answer, err := http.Get(server.URL + "/events" + query)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	return answer, bufio.NewScanner(answer.Body)
}

func TestStream(t *testing.T) {
	b := New("web")
	b.Publish(Event{Type: Started, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	answer, lines := stream(t, b, "?since=0")
	if got := answer.Header.Get("Content-Type"); answer.StatusCode != 200 || got != ContentType {
		t.Errorf("status %s, %s", answer.Status, got)
	}
	if want := `{"seq":1,"time":"2026-01-02T03:04:05Z","type":"started","name":"web"}`; !lines.Scan() || lines.Text() != want {
		t.Errorf("got  %s\nwant %s", lines.Text(), want)
	}
	time.Sleep(100 * time.Millisecond) // longer than the server's timeouts
	b.Publish(Event{Type: Ended, Message: "powered off"})
	var e Event
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &e) != nil || e.Seq != 2 || e.Message != "powered off" {
		t.Errorf("got %s", lines.Text())
	}
	b.Close()
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("after the end: %s, %v", lines.Text(), lines.Err())
	}
}

func TestStreamQueries(t *testing.T) {
	b := New("web")
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	for i := range 3 {
		b.Publish(Event{Type: Paused, Time: start.Add(time.Duration(i) * time.Minute)})
	}
	b.Close()
	for _, tt := range []struct {
		query string
		want  string // numbers of the events
	}{
		{"", ""}, {"?since=0", "123"}, {"?since=2", "3"}, {"?since=99", ""},
		{"?since=" + url.QueryEscape(start.Add(time.Second).Format(time.RFC3339)), "23"},
	} {
		_, lines := stream(t, b, tt.query)
		got := ""
		for lines.Scan() {
			var e Event
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Fatal(err)
			}
			got += fmt.Sprint(e.Seq)
		}
		if got != tt.want {
			t.Errorf("%q: events %s, want %s", tt.query, got, tt.want)
		}
	}
	for _, query := range []string{"?since=", "?since=-1", "?since=yesterday", "?since=18446744073709551616"} {
		answer, lines := stream(t, b, query)
		if answer.StatusCode != 400 || !lines.Scan() || !strings.Contains(lines.Text(), `"fault_message":"since=`) {
			t.Errorf("%q: status %s, %s", query, answer.Status, lines.Text())
		}
	}
}

// TestClientGone: the handler ends with its client.
func TestClientGone(t *testing.T) {
	b := New("web")
	ended := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.ServeHTTP(w, r)
		close(ended)
	}))
	defer server.Close()
	c, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	<-ended
	if len(b.subscribers) != 0 {
		t.Error("still subscribed")
	}
	// Another method is no stream.
	answer := httptest.NewRecorder()
	b.ServeHTTP(answer, httptest.NewRequest("POST", "/events", nil))
	if answer.Code != 400 {
		t.Errorf("POST: status %d", answer.Code)
	}
}
