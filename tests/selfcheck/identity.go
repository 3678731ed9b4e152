package main

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
)

// identity prints the generation ID, the MAC address and a random number of this
// guest, a line each.
func identity() error {
	// Where the machine has it (bootloader.GenerationIDAddr); there may be no
	// driver for it.
	const generationID = 0xff000
	mem, err := os.Open("/dev/mem")
	if err != nil {
		return err
	}
	defer mem.Close()
	id := make([]byte, 16)
	if _, err := mem.ReadAt(id, generationID); err != nil {
		return err
	}
	card, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return err
	}
	_, err = fmt.Printf("generation %x\nMAC %v\nrandom %x\n", id, card.HardwareAddr, random)
	return err
}
