# A web server of one page, with what every Debian has. Arguments: port, page.
use IO::Socket::INET;
my ($port, $page) = @ARGV;
my $listening = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $port, Listen => 64, ReuseAddr => 1) or die $!;
while (my $client = $listening->accept) {
    while (<$client>) { last if /^\r?\n$/ }
    print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($page) . "\r\nConnection: close\r\n\r\n$page";
    close $client;
}
