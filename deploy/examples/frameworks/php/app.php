<?php
// A cart in PHP with the sessions of php-redis: `php -S 127.0.0.1:8000 app.php`.
$url = getenv('UNDERSTUDY_REDIS_URL') ?: getenv('REDIS_URL') ?: 'redis://127.0.0.1:6379/0';
$seconds = getenv('SESSION_SECONDS') ?: '3600';

ini_set('session.save_handler', 'redis');
ini_set('session.save_path', preg_replace('#^redis://([^/]*).*#', 'tcp://$1', $url));
ini_set('session.gc_maxlifetime', $seconds);
ini_set('session.use_strict_mode', '1');
ini_set('redis.session.locking_enabled', getenv('SESSION_LOCKING') ?: '0');

$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);
if ($path === '/healthz') {
    echo 'ok';
    return;
}
session_start();
if ($path === '/add') {
    $_SESSION['count'] = ($_SESSION['count'] ?? 0) + 1;
    $_SESSION['items'][] = $_GET['item'];
} elseif ($path === '/logout') {
    $_SESSION = [];
    session_destroy();
}
// Otherwise PHP stores the session after the answer: a refused write would go unnoticed.
if (session_status() === PHP_SESSION_ACTIVE && !session_write_close()) {
    http_response_code(500);
    return;
}
header('Content-Type: application/json');
echo json_encode(['count' => $_SESSION['count'] ?? 0, 'items' => $_SESSION['items'] ?? []]);
