package agent

import (
	"errors"
	"io"
	"testing"
)

func TestWindow(t *testing.T) {
	w := newWindow()
	if n := w.take(windowSize * 2); n != windowSize {
		t.Fatalf("took %d of a fresh window", n)
	}
	taken := make(chan int)
	go func() { taken <- w.take(10) }()
	if err := w.grant(4); err != nil {
		t.Fatal(err)
	}
	if n := <-taken; n != 4 {
		t.Errorf("took %d of 4", n)
	}
	if err := w.grant(windowSize + 1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("more credit than the window: %v", err)
	}
	w.close()
	if n := w.take(1); n != 0 {
		t.Errorf("took %d of a closed window", n)
	}
}

func TestInbox(t *testing.T) {
	granted := 0
	b := newInbox(func(n int) error { granted += n; return nil })
	if err := b.push(make([]byte, windowSize)); err != nil {
		t.Fatal(err)
	}
	if err := b.push([]byte{1}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte without credit: %v", err)
	}
	b = newInbox(func(n int) error { granted += n; return nil })
	total := 0
	for total < 10*windowSize {
		if err := b.push(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		n, err := b.Read(make([]byte, 600))
		if err != nil {
			t.Fatal(err)
		}
		m, err := b.Read(make([]byte, 400))
		if err != nil {
			t.Fatal(err)
		}
		total += n + m
	}
	if granted < total-windowSize/4 || granted > total {
		t.Errorf("%d bytes of credit for %d read", granted, total)
	}
	if err := b.push([]byte("rest")); err != nil {
		t.Fatal(err)
	}
	b.end()
	if rest, err := io.ReadAll(b); string(rest) != "rest" || err != nil {
		t.Errorf("read %q, %v", rest, err)
	}
}
