package handover

import (
	"strings"
	"testing"
)

func TestMessage(t *testing.T) {
	want := Message{Verb: Refused, ID: NewID(), Epoch: 7, Reason: "disk é is busy"}
	got, err := DecodeMessage(want.Encode())
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	// A character that would be cut in two goes whole.
	long := Message{Verb: Abort, Epoch: 1, Reason: "x" + strings.Repeat("é", MaxReason)}
	got, err = DecodeMessage(long.Encode())
	if err != nil || got.Reason != long.Reason[:MaxReason-1] {
		t.Errorf("a reason of %d bytes, %v", len(got.Reason), err)
	}
}

func TestDecodeMessageRefuses(t *testing.T) {
	good := Message{Verb: Ready, Epoch: 1}.Encode()
	with := func(i int, v byte) []byte {
		b := append([]byte(nil), good...)
		b[i] = v
		return b
	}
	for name, b := range map[string][]byte{
		"empty": nil, "short": good[:len(good)-1], "long": make([]byte, MaxMessage+1),
		"verb 0": with(0, 0), "verb 7": with(0, 7), "epoch 0": with(17, 0), "epoch too large": with(24, 0x80),
		"not UTF-8": append(good[:len(good):len(good)], 0xff),
	} {
		if m, err := DecodeMessage(b); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

func TestID(t *testing.T) {
	id := NewID()
	if back, err := ParseID(id.String()); err != nil || back != id {
		t.Errorf("%s: %s, %v", id, back, err)
	}
	for _, text := range []string{"", "0", strings.Repeat("g", 32), strings.Repeat("0", 33)} {
		if id, err := ParseID(text); err == nil {
			t.Errorf("%q: %s", text, id)
		}
	}
}
